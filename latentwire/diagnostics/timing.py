"""Seconds that a call takes, an accelerator's work included. No torch here but what is loaded already."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and its seconds of wall time, until the current accelerator has done what it was given."""
    _finish()
    started = time.perf_counter()
    out = call()
    _finish()
    return out, time.perf_counter() - started


def _finish() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.accelerator.is_available():
        torch.accelerator.synchronize()
