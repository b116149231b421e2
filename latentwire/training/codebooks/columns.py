"""Columns of codes, and how payload layers share them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.wire.codebook import refined


@dataclass
class Columns:
    """Codewords of each column (cells, w), how many columns the first 1 to L payload layers hold together, and which
    dimension each column is about (fsq)."""

    words: list[Tensor]
    layers: list[int]
    dims: list[int] | None = None

    @property
    def arrays(self) -> dict[str, Tensor]:
        """What a codebook holds of them."""
        cells = [len(words) for words in self.words]
        before = [1 if by is None else cells[by] for by in refined(self.dims or range(len(cells)))]
        arrays = {"layers": self.layers, "sizes": [own // by for own, by in zip(cells, before, strict=True)]}
        arrays |= {"dims": self.dims} if self.dims else {}
        return {name: torch.tensor(numbers) for name, numbers in arrays.items()} | {"codewords": torch.cat(self.words)}


def evenly(columns: int, layers: int) -> list[int]:
    """How many columns the first 1, 2, ... payload layers hold together, where all hold about as many; no more layers
    than columns."""
    layers = min(layers, columns)
    return [columns * (i + 1) // layers for i in range(layers)]
