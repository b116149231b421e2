"""How often each code of a column is used: what an entropy coder goes by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latentwire.wire.codebook import MOST_ORDERED
from latentwire.wire.entropy import Codes, Column, Counts

Starts = npt.NDArray[np.bool_]
"""Which of some latents are the first of their message."""
WEIGHT, SHARED_WEIGHT = 1 << 16, 1 << 24
"""What the frequencies of a row add up to, about, and those of a vocabulary."""


def frequencies(codes: Codes, size: int, starts: Starts, refines: int | None = None, cells: int = 1) -> Column:
    """The frequencies of a column of codes (N,), which look at the latent before if that saves bits on codes that were
    left out of the counting; or, where the column refines another one, at which of its `cells` a latent is in."""
    if refines is not None:
        return Column(_table(codes % size, codes // size, (cells, size)), refines)
    learn = np.arange(len(codes)) % 10 != 9
    test = np.flatnonzero(~learn & ~starts)
    behind = np.where(starts, 0, np.roll(codes, 1) + 1)

    def table(ordered: bool, used: Starts) -> Counts:
        rows = behind if ordered else np.zeros_like(codes)
        return _table(codes[used], rows[used], (size + 1 if ordered else 1, size))

    def cost(ordered: bool) -> float:
        return Column(table(ordered, learn)).bits(codes, starts, test)

    best = min((False, True) if size <= MOST_ORDERED else (False,), key=cost)
    return Column(table(best, np.ones_like(learn)))


def _table(symbols: Codes, rows: Codes, shape: tuple[int, int]) -> Counts:
    """Frequencies of symbols (N,), each counted in the row (N,) that holds for it.

    Each row leans on the column's frequencies as a whole, and those on equal ones, as if `size` more had been seen.
    """
    size = shape[1]
    whole = np.bincount(symbols, minlength=size) + 1.0
    whole /= whole.sum()
    counts = np.zeros(shape)
    np.add.at(counts, (rows, symbols), 1)
    shares = (counts + size * whole) / (counts.sum(1, keepdims=True) + size) if len(counts) > 1 else whole[None]
    return np.maximum(1, np.rint(shares * WEIGHT)).astype(np.int32)


def shared_frequencies(codes: Codes, size: int) -> Column:
    """The same frequencies for all columns of codes (N, C), most of which may never have been seen: these share what
    those have that were seen once (Good 1953, doi 10.1093/biomet/40.3-4.237)."""
    counts = np.bincount(codes.flatten(), minlength=size)
    unseen = (counts == 0).sum()
    share = min(0.5, (1 + (counts == 1).sum()) / (1 + codes.size)) if unseen else 0.0
    shares = np.where(counts > 0, (1 - share) * counts / codes.size, share / max(1, unseen))
    return Column(np.maximum(1, np.rint(shares * SHARED_WEIGHT)).astype(np.int32)[None])
