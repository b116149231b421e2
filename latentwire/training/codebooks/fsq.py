"""Levels of single dimensions, told coarse to fine, for finite scalar quantisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentwire.config.sections.latents import CodecConfig
from latentwire.training.codebooks.columns import Columns
from latentwire.training.codebooks.frequencies import Starts, frequencies

ROOTS, PARTS, FINER = (3, 5, 7), 3, 3
"""Cells that the first column of a dimension may tell apart; into how many parts each later one cuts a cell; how many
later ones there may be. All odd, so that the cell around zero stays one around zero."""


@dataclass
class Cut:
    """One column of a dimension: the codewords of its cells (cells, 1), the bits that it takes a latent, the mean
    squared error that is left behind it, and by how much a bit of it lowers that."""

    dim: int
    words: Tensor
    bits: float
    error: float
    worth: float


def fit_fsq(y: Tensor, starts: Starts, config: CodecConfig) -> Columns:
    """Levels of dimensions, told coarse to fine, in payload layers of about equal bits; at most `bits` a latent in all,
    but the sign of the first dimension at least.

    The levels of a dimension are those that make error + price * bits the smallest, with one price of a bit for all
    dimensions (Shoham & Gersho 1988, doi 10.1109/29.90373): one that varies little gets three, of which the middle one
    is wide, or none. Columns are ordered by what a bit of them is worth, so that any number of them is about the best
    that its bits can tell, as EBCOT orders bit planes (Taubman 2000, doi 10.1109/83.847830).
    """
    choices = [_choices(dim, values, starts) for dim, values in enumerate(y.T.contiguous())]
    bits = np.array([[sum(cut.bits for cut in cuts) for cuts in own] for own in choices])
    errors = np.array(
        [[float(y[:, d].square().mean()), *(c[-1].error for c in own[1:])] for d, own in enumerate(choices)]
    )
    low, high = 1e-9 * errors.max(), 1e3 * errors.max()
    for _ in range(60):
        price = (low * high) ** 0.5
        taken = np.take_along_axis(bits, (errors + price * bits).argmin(1)[:, None], 1).sum()
        low, high = (price, high) if taken > config.bits else (low, price)
    chosen = (errors + high * bits).argmin(1)
    cuts = [cut for own, choice in zip(choices, chosen, strict=True) for cut in own[choice]]
    if not cuts:
        half = y[:, 0].abs().mean()
        return Columns([torch.stack([-half, half])[:, None]], [1], [0])
    cuts.sort(key=lambda cut: -cut.worth)  # stable: a dimension's columns stay coarse to fine
    total = np.cumsum([cut.bits for cut in cuts])
    upto = total[-1] * np.arange(1, config.layers + 1) / config.layers
    ends = np.maximum(np.searchsorted(total, upto), np.arange(config.layers)) + 1
    layers = sorted({min(int(end), len(cuts)) for end in ends})
    return Columns([cut.words for cut in cuts], layers, [cut.dim for cut in cuts])


def _choices(dim: int, values: Tensor, starts: Starts) -> list[list[Cut]]:
    """All that could be told of a dimension: nothing, or any number of levels."""
    return [[], *(_ladder(dim, values, root, finer, starts) for root in ROOTS for finer in range(FINER + 1))]


def _ladder(dim: int, values: Tensor, root: int, finer: int, starts: Starts) -> list[Cut]:
    """Columns that tell the nearest of root * PARTS ** finer levels, coarse to fine.

    A level stands for the mean of what is in its share of the range, a coarser cell for that of what lies in it. No
    column is worth more than the one that it refines.
    """
    count = root * PARTS**finer
    largest = max(float(values.abs().max()), 1e-30)
    centres = largest * ((2 * torch.arange(count) + 1) / count - 1)
    shares = ((values / largest + 1) / 2 * count).long().clamp(max=count - 1)
    levels = _means(values, shares, centres)
    nearest = torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)
    cuts, error, worth = [], float(values.square().mean()), np.inf
    for number, left in enumerate(reversed(range(finer + 1))):
        size, parts = PARTS**left, root if left == finer else PARTS
        cells = nearest // size
        words = _means(values, cells, centres[size // 2 :: size]) if left else levels
        codes, rest = cells.numpy().astype(np.int32), float((values - words[cells]).square().mean())
        column = frequencies(codes, parts, starts, number - 1 if number else None, len(words) // parts)
        bits = column.bits(codes, starts) / len(codes)
        worth = min(worth, (error - rest) / max(bits, 1e-9))
        cuts.append(Cut(dim, words[:, None], bits, rest, worth))
        error = rest
    return cuts


def _means(values: Tensor, cells: Tensor, empty: Tensor) -> Tensor:
    """The mean of the values (N,) in each cell; that of `empty` (cells,) where there are none."""
    counts = torch.bincount(cells, minlength=len(empty))
    means = torch.bincount(cells, weights=values.double(), minlength=len(empty)) / counts.clamp(min=1)
    return torch.where(counts > 0, means.float(), empty)
