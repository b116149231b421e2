"""Codebooks from latents: a rotation that ranks dimensions by what readers make of them, then codes for the first ones.

Everything here works on latents that are there already; `stages.codec` collects them and trains around the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from vector_quantize_pytorch import ResidualVQ

from latentwire.config.sections.latents import CodecConfig
from latentwire.wire.codebook import MOST_ORDERED, Codebook
from latentwire.wire.codecs import LearnedCodec
from latentwire.wire.entropy import Codes, Column, Counts

Starts = npt.NDArray[np.bool_]
BATCH = 2048
"""Latents of a step of k-means."""
MOST_LEVELS = 129
"""Of one dimension in finite scalar quantisation; one that would need more gets larger steps."""
WEIGHT = 1 << 16
"""What the frequencies of a row add up to, about."""


@dataclass
class Rotation:
    """y = (z - mean) @ into has uncorrelated dimensions, whose errors all weigh alike, those with the largest variance
    first; z = mean + y @ back. mean (d_z,), into (d_z, k), back (k, d_z)."""

    mean: Tensor
    into: Tensor
    back: Tensor


def principal_rotation(z: Tensor, metric: Tensor, width: int) -> Rotation:
    """The `width` principal components of latents z (N, d_z), where an error e weighs e' metric e."""
    mean = z.mean(0)
    centred = (z - mean).double()
    covariance = centred.T @ centred / len(z)
    values, vectors = torch.linalg.eigh(metric.double())
    root = values.clamp(min=1e-6 * float(values[-1])).sqrt()
    a, inverse = vectors * root, vectors / root  # metric = a a'; inverse = a'^-1
    components = torch.linalg.eigh(a.T @ covariance @ a)[1].flip(1)[:, :width]
    return Rotation(mean, (a @ components).float(), (inverse @ components).T.float())


def fit_rvq(y: Tensor, config: CodecConfig) -> tuple[list[Tensor], list[int]]:
    """Codewords of each column (size, k), and the columns of the first 1 to L payload layers.

    k-means one codebook after the other, by exponential moving averages, with codewords that nothing is near moved to
    where there is something (van den Oord et al., arXiv 1711.00937; Dhariwal et al., arXiv 2005.00341).
    """
    columns = max(1, round(config.bits / config.index_bits))
    size, batch, layers = min(1 << config.index_bits, len(y)), min(BATCH, len(y)), min(config.layers, columns)
    vq = ResidualVQ(
        dim=y.shape[1],
        num_quantizers=columns,
        codebook_size=size,
        kmeans_init=True,
        decay=0.9,
        threshold_ema_dead_code=min(2.0, 0.25 * batch / size),  # of a batch, a quarter of what is a codeword's due
    ).train()
    with torch.no_grad():
        for _ in range(config.epochs):
            for rows in torch.randperm(len(y)).split(batch):
                if len(rows) == batch:
                    vq(y[None, rows])
    words = [layer._codebook.embed[0].clone() for layer in vq.layers]
    return words, [columns * (i + 1) // layers for i in range(layers)]


def fit_fsq(y: Tensor, starts: Starts, config: CodecConfig) -> tuple[list[Tensor], list[int]]:
    """Levels of each column (size, 1), and the columns of the first 1 to L payload layers, of about equal bits.

    All dimensions are cut in steps of one size, which is chosen so that their codes take `bits` a latent.
    """
    few, many = 1e-3, 1e3  # steps, as multiples of the largest deviation
    scale = float(y.std(0).max())
    for _ in range(24):
        middle = (few * many) ** 0.5
        _, bits = _scalar(y, middle * scale, starts)
        few, many = (middle, many) if sum(bits) > config.bits else (few, middle)
    levels, bits = _scalar(y, many * scale, starts)
    total, upto = np.cumsum(bits), [sum(bits) * (i + 1) / config.layers for i in range(config.layers)]
    ends = [max(i + 1, int(np.searchsorted(total, bits, side="left")) + 1) for i, bits in enumerate(upto)]
    return levels, sorted({min(end, len(levels)) for end in ends})


def _scalar(y: Tensor, step: float, starts: Starts) -> tuple[list[Tensor], list[float]]:
    """Levels (size, 1) of the first dimensions, up to the first that never leaves level zero, and bits of their codes.

    A level stands for the mean of what is rounded to it.
    """
    finest = 2 / (MOST_LEVELS - 1)
    all_levels, all_bits = [], []
    for values in y.T:
        own = max(step, finest * float(values.abs().max()))
        most = int(values.abs().max() / own + 0.5)
        if not most:
            break
        rounded = (values / own).round().clamp(-most, most).long() + most
        counts = torch.bincount(rounded, minlength=2 * most + 1)
        means = torch.bincount(rounded, weights=values.double(), minlength=2 * most + 1) / counts.clamp(min=1)
        centre = (torch.arange(2 * most + 1) - most) * own
        levels = torch.where(counts > 0, means.float(), centre)
        all_levels.append(levels[:, None])
        codes = (values[:, None] - levels).abs().argmin(1).numpy().astype(np.int32)
        all_bits.append(frequencies(codes, 2 * most + 1, starts).bits(codes, starts) / len(codes))
    if not all_levels:  # all of it would be rounded off: the sign of the first dimension is the least to send
        half = y[:, 0].abs().mean()
        return [torch.stack([-half, half])[:, None]], [1.0]
    return all_levels, all_bits


def frequencies(codes: Codes, size: int, starts: Starts) -> Column:
    """The frequencies of a column of codes (N,), which look at the latent before if that saves bits on codes that were
    left out of the counting."""
    learn = np.arange(len(codes)) % 10 != 9
    test = np.flatnonzero(~learn & ~starts)

    def cost(column: Column) -> float:
        rows = column.rows(codes, starts)[test]
        return float(-np.log2(column.counts[rows, codes[test]] / column.counts.sum(1)[rows]).sum())

    orders = (False, True) if size <= MOST_ORDERED else (False,)
    best = min(orders, key=lambda ordered: cost(Column(_table(codes, size, starts, ordered, learn))))
    return Column(_table(codes, size, starts, best, np.ones_like(learn)))


def _table(codes: Codes, size: int, starts: Starts, ordered: bool, used: Starts) -> Counts:
    """Frequencies (1, size), or behind each code that the previous latent may have (size + 1, size).

    Each row leans on the column's frequencies as a whole, and those on equal ones, as if `size` more had been seen.
    """
    whole = np.bincount(codes[used], minlength=size) + 1.0
    whole /= whole.sum()
    rows = whole[None]
    if ordered:
        counts = np.zeros((size + 1, size))
        np.add.at(counts, (np.where(starts, 0, np.roll(codes, 1) + 1)[used], codes[used]), 1)
        rows = (counts + size * whole) / (counts.sum(1, keepdims=True) + size)
    return np.maximum(1, np.rint(rows * WEIGHT)).astype(np.int32)


def build_codebook(
    codec: LearnedCodec, rotation: Rotation, words: list[Tensor], layers: list[int], z: Tensor, starts: Starts
) -> Codebook:
    """A codebook for a codec, with the frequencies of its codes on latents z (N, d_z)."""
    kind = codec.name
    sizes = [len(w) for w in words]
    arrays = {
        "mean": rotation.mean.numpy(),
        "into": rotation.into.numpy(),
        "back": rotation.back.numpy(),
        "layers": np.array(layers),
        "sizes": np.array(sizes),
        "orders": np.zeros(len(sizes), int),
        "codewords": torch.cat(words).numpy(),
        "counts": np.ones(sum(sizes), int),
    }
    draft = Codebook(kind, arrays)
    writer = codec.with_book(draft)
    codes = writer.codes(draft, writer.rotated(z.numpy()))
    columns = [frequencies(column, size, starts) for column, size in zip(codes.T, sizes, strict=True)]
    arrays["orders"] = np.array([int(column.ordered) for column in columns])
    arrays["counts"] = np.concatenate([column.counts.reshape(-1) for column in columns])
    return Codebook(kind, arrays)
