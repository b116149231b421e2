"""Tensors on their way from part to part: what shape they have, and how large their numbers are. No torch here.

Whoever hands a tensor on says so by `hand_over`; who wants to know watches. Nobody watching, it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_watch: TensorWatch | None = None


class TensorWatch:
    """What is seen while watching. With `shapes`, each tensor is printed once a shape, behind a title."""

    def __init__(self, title: str, shapes: bool):
        self.title = title
        self.shapes = shapes
        self.seen: set[tuple[Any, ...]] = set()
        self.squares: dict[str, tuple[float, int]] = {}

    @property
    def rms(self) -> dict[str, float]:
        """Root mean square by name, over all that was handed over under it."""
        return {f"{name}_rms": (total / count) ** 0.5 for name, (total, count) in self.squares.items() if count}

    def see(self, name: str, tensor: Any, where: Any) -> None:
        if tensor.is_floating_point():
            numbers = (tensor if where is None else tensor[where]).detach().float()
            total, count = self.squares.get(name, (0.0, 0))
            self.squares[name] = total + numbers.pow(2).sum().item(), count + numbers.numel()
        key = (name, tuple(tensor.shape))
        if self.shapes and key not in self.seen:
            self.seen.add(key)
            kind = str(tensor.dtype).removeprefix("torch.")
            print(f"{self.title}: {name} {key[1]} {kind} on {tensor.device}", flush=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what is handed over inside; root mean squares of an earlier time are forgotten."""
        global _watch
        before, _watch, self.squares = _watch, self, {}
        try:
            yield
        finally:
            _watch = before


def hand_over(name: str, tensor: Any, where: Any = None) -> None:
    """Say that a tensor goes from one part to the next. where: a mask over its first dimensions, of what is no
    padding; None where nothing is."""
    if _watch is not None:
        _watch.see(name, tensor, where)
