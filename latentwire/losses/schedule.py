"""How weights and sizes go over a stage; progress runs from 0 to 1."""

from __future__ import annotations

import math


def interpolate(start: float, end: float | None, progress: float, form: str = "linear") -> float:
    """From start to end in a straight line or along half a cosine; without an end, the start."""
    if end is None:
        return start
    share = progress if form == "linear" else 0.5 * (1.0 - math.cos(math.pi * progress))
    return start + (end - start) * share


def tokens_at(start: int, end: int | None, progress: float) -> int:
    """K of the K-token losses: every whole number from start to end gets an equal share of the stage."""
    if end is None:
        return start
    steps = abs(end - start) + 1
    done = min(int(progress * steps), steps - 1)
    return start + done if end >= start else start - done
