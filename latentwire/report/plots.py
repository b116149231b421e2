"""What the plots have in common: intervals as matplotlib wants them, and the PNG. No torch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def around(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """How far the intervals of these means reach below and above them: never below nothing."""
    apart = [(row[name] - row[f"{name}_ci"][0], row[f"{name}_ci"][1] - row[name]) for row in rows]
    return [max(0.0, below) for below, _ in apart], [max(0.0, above) for _, above in apart]


def as_png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150)
    return out.getvalue()
