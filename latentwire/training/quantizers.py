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
from latentwire.wire.codebook import MOST_ORDERED, Codebook, cells_of, refined
from latentwire.wire.codecs import LearnedCodec
from latentwire.wire.codecs.integers import quantize, scales_of
from latentwire.wire.entropy import Codes, Column, Counts

Starts = npt.NDArray[np.bool_]
BATCH = 2048
"""Latents of a step of k-means."""
ROOTS, PARTS, FINER = (3, 5, 7), 3, 3
"""Cells that the first column of a dimension may tell apart in finite scalar quantisation; into how many parts each
later one cuts a cell; how many later ones there may be. All odd, so that the cell around zero stays one around zero."""
RIDGE = 5.0
"""Of what latents say beyond tokens by themselves: a share of the mean sum of squares, for each unknown a latent."""
LARGEST = 1e4
"""The largest number of a codeword of a vocabulary, which has 16 bits."""
WEIGHT, SHARED_WEIGHT = 1 << 16, 1 << 24
"""What the frequencies of a row add up to, about, and those of a vocabulary."""


@dataclass
class Rotation:
    """y = (z - mean) @ into has uncorrelated dimensions, whose errors all weigh alike, those with the largest variance
    first; z = mean + y @ back. mean (d_z,), into (d_z, k), back (k, d_z)."""

    mean: Tensor
    into: Tensor
    back: Tensor

    def stored(self) -> tuple[Rotation, dict[str, Tensor]]:
        """What is left of it in a codebook, and that one's arrays: `back` has 8 bits a number and a scale a row, and
        `into` is such that back @ into is one. It is not there where all dimensions are coded: the inverse of back."""
        levels, codes = quantize(self.back.numpy())
        scale = torch.from_numpy(scales_of(codes))
        mean, back = self.mean.half(), torch.from_numpy(levels) * scale
        into = (self.into.double() @ torch.linalg.inv(back.double() @ self.into.double())).float()
        arrays = {"mean": mean, "back": torch.from_numpy(levels), "scale": scale[:, 0].half()}
        if len(back) < back.shape[1]:
            arrays["into"] = into.half()
            into = into.half().float()
        return Rotation(mean.float(), into, back), arrays


def principal_rotation(z: Tensor, metric: Tensor, width: int, times: Tensor | None = None) -> Rotation:
    """The `width` principal components of latents z (N, d_z), where an error e weighs e' metric e.

    times: (N,) how many times each latent counts; once without it.
    """
    shares = (torch.ones(len(z)) if times is None else times).double()
    shares /= shares.sum()
    mean = (shares @ z.double()).float()
    centred = (z - mean).double().mul_(shares.sqrt()[:, None])
    covariance = centred.T @ centred
    values, vectors = torch.linalg.eigh(metric.double())
    root = values.clamp(min=1e-6 * float(values[-1])).sqrt()
    a, inverse = vectors * root, vectors / root  # metric = a a'; inverse = a'^-1
    components = torch.linalg.eigh(a.T @ covariance @ a)[1].flip(1)[:, :width]
    return Rotation(mean, (a @ components).float(), (inverse @ components).T.float())


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


@dataclass
class Vocabulary:
    """What each token adds to a latent, in the order in which those of a window are read: features @ maps.

    features: (V, F); maps: (P, F, d_z); read: (N, P) the tokens behind each of some latents.
    """

    features: Tensor
    maps: Tensor
    read: Tensor


def rvq_columns(config: CodecConfig) -> int:
    """Codebooks of residual vector quantisation, each with an index of `index_bits` of all `bits`."""
    return max(1, round(config.bits / config.index_bits))


def most_layers(kind: str, config: CodecConfig, read: int) -> int:
    """The most payload layers that a codebook of this configuration will have, with so many tokens read a latent."""
    return min(config.layers, {"rvq": rvq_columns(config), "aq": read}.get(kind, config.layers))


def fit_rvq(y: Tensor, config: CodecConfig) -> Columns:
    """Codewords of width k = y's.

    k-means one codebook after the other, by exponential moving averages, with codewords that nothing is near moved to
    where there is something (van den Oord et al., arXiv 1711.00937; Dhariwal et al., arXiv 2005.00341).
    """
    columns = rvq_columns(config)
    size, batch = min(1 << config.index_bits, len(y)), min(BATCH, len(y))
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
    return Columns(words, evenly(columns, config.layers))


def evenly(columns: int, layers: int) -> list[int]:
    """How many columns the first 1, 2, ... payload layers hold together, where all hold about as many; no more layers
    than columns."""
    layers = min(layers, columns)
    return [columns * (i + 1) // layers for i in range(layers)]


def fit_aq(z: Tensor, vocabulary: Vocabulary, rotation: Rotation, config: CodecConfig) -> dict[str, Tensor]:
    """What a codebook holds of what tokens add to latents z (N, d_z), in place of a rotation's own mean and `into`.

    Tokens read by themselves say where to start: `codec.rank` principal components of what is known of them, weighed by
    what of it arrives. How much of that remains within a text, latents say: least squares with a ridge on the change.
    Expectations vary less than latents do, and readers answer better from what varies as much: hence a gain, with which
    a writer looks for the codewords, too.
    """
    maps = vocabulary.maps @ rotation.into
    seen, times = vocabulary.read.unique(return_counts=True)  # a row for each of N * P would take gigabytes
    metric = torch.einsum("pfk,pgk->fg", maps, maps)
    own = principal_rotation(vocabulary.features[seen], metric, min(config.rank, len(metric)), times)
    table = (vocabulary.features - own.mean) @ own.into
    least = table.abs().amax(0) / LARGEST  # in directions in which only unread tokens differ
    size = table[vocabulary.read].flatten(0, 1).std(0).maximum(least).clamp(min=1e-6)
    table = table / size
    maps = ((own.back * size[:, None]) @ maps).flatten(0, 1)
    mean, x = z.mean(0), table[vocabulary.read]
    usual = x.mean(0)  # (P, r): which tokens are read first and last are not alike
    x, y = (x - usual).flatten(1), (z - mean) @ rotation.into
    alone = x @ maps
    maps = maps * ((alone * y).sum() / alone.square().sum())
    gram = (x.T @ x).double()
    gram += RIDGE * len(gram) / len(x) * gram.diagonal().mean() * torch.eye(len(gram))
    maps = maps + torch.linalg.solve(gram, (x.T @ (y - x @ maps)).double()).float()
    gain = y.norm() / (x @ maps).norm()
    maps = gain * maps.unflatten(0, usual.shape)
    phases = len(maps)
    return {
        "mean": mean,
        "into": gain * rotation.into,
        "layers": torch.tensor(evenly(phases, config.layers)),
        "sizes": torch.full((phases,), len(table)),
        # A one behind each codeword, so that the last row of a map takes off what is usual.
        "codewords": torch.cat([table, torch.ones(len(table), 1)], 1),
        "maps": torch.cat([maps, -usual[:, None] @ maps], 1).flatten(0, 1),
    }


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


def build_codebook(codec: LearnedCodec, found: dict[str, Tensor], z: Tensor, starts: Starts) -> Codebook:
    """A codebook of a codec, from what was found of it, with the frequencies of its codes on latents z (N, d_z)."""
    arrays = {name: tensor.numpy() for name, tensor in found.items()}
    sizes = arrays["sizes"].tolist()
    cells = cells_of(sizes, refined(arrays.get("dims", np.arange(len(sizes))).tolist()))
    unknown = {"orders": np.zeros(len(sizes), int), "counts": np.ones(sum(cells), int)}
    return counted(codec.with_book(Codebook(codec.name, arrays | unknown)), z, starts)


def counted(codec: LearnedCodec, z: Tensor, starts: Starts) -> Codebook:
    """The codec's codebook with the frequencies of its codes on latents z (N, d_z)."""
    book = codec.book
    assert book is not None
    codes = codec.codes(book, codec.rotated(z.numpy()))
    if book.kind == "aq":
        columns = [_shared_frequencies(codes, book.sizes[0])] * len(book.sizes)
    else:
        columns = [
            frequencies(own, size, starts, by, 1 if by is None else book.cells[by])
            for own, size, by in zip(codes.T, book.sizes, book.refines, strict=True)
        ]
    orders = np.array([int(column.ordered) for column in columns])
    counts = np.concatenate([column.counts.reshape(-1) for column in columns])
    return Codebook(book.kind, book.arrays | {"orders": orders, "counts": counts})


def _shared_frequencies(codes: Codes, size: int) -> Column:
    """The same frequencies for all columns of codes (N, C), most of which may never have been seen: these share what
    those have that were seen once (Good 1953, doi 10.1093/biomet/40.3-4.237)."""
    counts = np.bincount(codes.flatten(), minlength=size)
    unseen = (counts == 0).sum()
    share = min(0.5, (1 + (counts == 1).sum()) / (1 + codes.size)) if unseen else 0.0
    shares = np.where(counts > 0, (1 - share) * counts / codes.size, share / max(1, unseen))
    return Column(np.maximum(1, np.rint(shares * SHARED_WEIGHT)).astype(np.int32)[None])
