"""Tensors on their way from part to part: what shape they have, and how large their numbers are. No torch here.

Whoever hands a tensor on says so by `hand_over`; who wants to know watches. Nobody watching, it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_watch: Watch | None = None


class Watch:
    """What is seen while watching. With `shapes`, each tensor is printed once a shape, behind a title."""

    def __init__(self, title: str, shapes: bool):
        self.title = title
        self.shapes = shapes
        self.seen: set[tuple[Any, ...]] = set()
        self.rms: dict[str, float] = {}

    def see(self, name: str, tensor: Any) -> None:
        if tensor.is_floating_point():
            self.rms[f"{name}_rms"] = tensor.detach().float().pow(2).mean().sqrt().item()
        key = (name, tuple(tensor.shape))
        if self.shapes and key not in self.seen:
            self.seen.add(key)
            kind = str(tensor.dtype).removeprefix("torch.")
            print(f"{self.title}: {name} {key[1]} {kind} on {tensor.device}", flush=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what is handed over inside; root mean squares of an earlier time are forgotten."""
        global _watch
        before, _watch, self.rms = _watch, self, {}
        try:
            yield
        finally:
            _watch = before


def hand_over(name: str, tensor: Any) -> None:
    """Say that a tensor goes from one part to the next."""
    if _watch is not None:
        _watch.see(name, tensor)
