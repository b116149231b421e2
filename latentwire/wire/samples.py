"""Random codebooks, for what is measured or tried without a trained one."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentwire.wire.codebook import Codebook, cells_of, refined, remember
from latentwire.wire.codecs import Codec, LearnedCodec


def with_sample_book(codec: Codec, d_z: int) -> Codec:
    """The codec itself, or a learned one without a codebook with one for latents of this width, from now on known."""
    if not isinstance(codec, LearnedCodec) or codec.book is not None:
        return codec
    sizes = {"rvq": [256] * 6, "fsq": [9] * 8 + [5] * 12 + [3] * 16, "aq": [1024] * 4}[codec.name]
    return codec.with_book(remember(sample_codebook(codec.name, d_z, min(64, d_z), sizes)))


def sample_codebook(kind: str, d_z: int, width: int, sizes: list[int], seed: int = 0) -> Codebook:
    """A random codebook in three payload layers. Of the small columns, every second one looks at the latent before; of
    fsq, half of them are about as many dimensions, the last one first, and the others refine those, twice each."""
    rng, sizes = np.random.default_rng(seed), sizes[:width] if kind == "fsq" else sizes
    basis = np.linalg.qr(rng.standard_normal((d_z, width)))[0]
    half = -(-len(sizes) // 2) if kind == "fsq" else len(sizes)
    dims = [half - 1 - (column if column < half else (column - half) // 2) for column in range(len(sizes))]
    refines = refined(dims)
    orders = [int(column % 2 == 1 and column < half and size <= 16) for column, size in enumerate(sizes)]
    cells = cells_of(sizes, refines)
    widths = {"rvq": width, "fsq": 1, "aq": -(-width // 2)}
    words = [rng.standard_normal((own, widths[kind])) / (i + 1) for i, own in enumerate(cells)]
    counts = sum(own * (size + 1 if order else 1) for own, size, order in zip(cells, sizes, orders, strict=True))
    arrays: dict[str, Any] = {
        "mean": rng.standard_normal(d_z),
        "into": basis,
        "back": basis.T,
        "layers": np.unique([-(-len(sizes) * part // 3) for part in (1, 2, 3)]),
        "sizes": np.array(sizes),
        "orders": np.array(orders),
        "codewords": words[0] if kind == "aq" else np.concatenate(words),
        "counts": rng.integers(1, 1000, counts),
    }
    if kind == "fsq":
        arrays["dims"] = np.array(dims)
    if kind == "aq":
        arrays["maps"] = rng.standard_normal((len(sizes) * widths[kind], width))
    return Codebook(kind, arrays)
