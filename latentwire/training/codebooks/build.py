"""A codebook of what was found, with the frequencies of its codes."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from latentwire.config.sections.latents import CodecConfig
from latentwire.training.codebooks.frequencies import Starts, frequencies, shared_frequencies
from latentwire.training.codebooks.rvq import rvq_columns
from latentwire.wire.codebook import Codebook, cells_of, refined
from latentwire.wire.codecs import LearnedCodec


def most_layers(kind: str, config: CodecConfig, read: int) -> int:
    """The most payload layers that a codebook of this configuration will have, with so many tokens read a latent."""
    return min(config.layers, {"rvq": rvq_columns(config), "aq": read}.get(kind, config.layers))


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
        columns = [shared_frequencies(codes, book.sizes[0])] * len(book.sizes)
    else:
        columns = [
            frequencies(own, size, starts, by, 1 if by is None else book.cells[by])
            for own, size, by in zip(codes.T, book.sizes, book.refines, strict=True)
        ]
    orders = np.array([int(column.ordered) for column in columns])
    counts = np.concatenate([column.counts.reshape(-1) for column in columns])
    return Codebook(book.kind, book.arrays | {"orders": orders, "counts": counts})
