"""What the two ends of a wire share beyond its messages: rotation, codewords, probabilities. No torch.

A codebook is found in training and named by its content. Those that were loaded in this process are known by their
ids, so that a message's latents can be decoded wherever its codebook is at hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire.core.errors import CheckpointError
from latentwire.wire.entropy import Column
from latentwire.wire.frame import CODEBOOK_BYTES

Array = npt.NDArray[Any]
FORMS: dict[str, tuple[str, int]] = {
    "mean": ("<f2", 1),
    "into": ("<f2", 2),
    "back": ("<f2", 2),
    "layers": ("<i4", 1),
    "sizes": ("<i4", 1),
    "orders": ("<i4", 1),
    "codewords": ("<f2", 2),
    "counts": ("<i4", 1),
}
KINDS = ("rvq", "fsq")
"""Codecs that have codebooks: of vectors that add up, and of the levels of single dimensions."""
MOST_SIZE, MOST_ORDERED = 1 << 12, 1 << 8
"""Most codewords of a column, and of one whose frequencies depend on the previous latent."""


class Codebook:
    """The arrays of a learned codec, of width k in C columns of codes.

    A latent z is coded as y = (z - mean) @ into, and read as mean + y @ back.

    mean: (d_z,); into: (d_z, k); back: (k, d_z).
    sizes: (C,) codes that a column has. layers: (L,) columns that the first 1 to L payload layers hold together.
    codewords: (sum of sizes, w) what each code stands for, column by column: a vector of width w = k (rvq), or a number
    (w = 1) where column c is dimension c of y (fsq).
    orders: (C,) 0 where a code's probability is always the same, 1 where it depends on the previous latent's code in
    the same column. counts: relative frequencies, column by column: one row of `sizes` numbers, and with order 1 one
    more for each code that the previous latent may have.
    """

    def __init__(self, kind: str, arrays: Mapping[str, Array]):
        self.kind = kind
        missing = sorted(FORMS.keys() - arrays.keys())
        if missing:
            raise CheckpointError(f"codebook of {kind!r}: {missing[0]} is missing")
        with np.errstate(over="ignore"):  # what is too large for binary16 is refused below
            self.arrays = {name: np.ascontiguousarray(arrays[name], form) for name, (form, _) in FORMS.items()}
        self._check()
        self.mean, self.into, self.back = (self.arrays[n].astype(np.float32) for n in ("mean", "into", "back"))
        self.layers, self.sizes, self.orders = (self.arrays[n].tolist() for n in ("layers", "sizes", "orders"))
        codewords = self.arrays["codewords"].astype(np.float32)
        self.codewords = np.split(codewords, np.cumsum(self.sizes)[:-1])
        self.columns = [Column(table) for table in self._tables()]

    def _check(self) -> None:
        sizes, layers, orders = (self.arrays[name].astype(np.int64) for name in ("sizes", "layers", "orders"))
        d_z, k = self.arrays["into"].shape if self.arrays["into"].ndim == 2 else (0, 0)
        rows = np.where(orders > 0, sizes + 1, 1) if orders.shape == sizes.shape else sizes
        right = (
            self.kind in KINDS
            and all(self.arrays[name].ndim == ndim and self.arrays[name].size for name, (_, ndim) in FORMS.items())
            and self.arrays["mean"].shape == (d_z,)
            and self.arrays["back"].shape == (k, d_z)
            and orders.shape == sizes.shape
            and bool(((sizes > 1) & (sizes <= MOST_SIZE) & (orders >= 0) & (orders <= 1)).all())
            and bool((sizes[orders > 0] <= MOST_ORDERED).all())
            and bool((np.diff(layers, prepend=0) > 0).all())
            and layers[-1] == len(sizes)
            and self.arrays["codewords"].shape == (sizes.sum(), k if self.kind == "rvq" else 1)
            and (self.kind == "rvq" or len(sizes) <= k)
            and self.arrays["counts"].shape == ((sizes * rows).sum(),)
            and bool((self.arrays["counts"] > 0).all())
            and all(np.isfinite(self.arrays[name]).all() for name in ("mean", "into", "back", "codewords"))
        )
        if not right:
            raise CheckpointError(f"codebook of {self.kind!r}: its arrays do not fit together")

    def _tables(self) -> Iterator[Array]:
        """(rows, size) relative frequencies of each column."""
        at = 0
        for size, order in zip(self.sizes, self.orders, strict=True):
            rows = size + 1 if order else 1
            yield self.arrays["counts"][at : at + rows * size].reshape(rows, size)
            at += rows * size

    @cached_property
    def id(self) -> bytes:
        """The first 4 bytes of the SHA-256 of its kind and arrays, in the order of FORMS (docs/wire.md)."""
        digest = hashlib.sha256(self.kind.encode())
        for array in self.arrays.values():
            digest.update(array.tobytes())
        return digest.digest()[:CODEBOOK_BYTES]

    def same_as(self, other: Codebook) -> bool:
        """Whether two codebooks are equal in everything."""
        return self.kind == other.kind and all(
            np.array_equal(array, other.arrays[name]) for name, array in self.arrays.items()
        )

    @property
    def d_z(self) -> int:
        """Width of the latents that it codes."""
        return len(self.mean)


_KNOWN: dict[bytes, Codebook] = {}


def remember(book: Codebook) -> Codebook:
    """Make a codebook known in this process; CheckpointError where another one goes by the same id."""
    known = _KNOWN.setdefault(book.id, book)
    if known is not book and not known.same_as(book):
        raise CheckpointError(f"codebook of {book.kind!r}: its id {book.id.hex()} is that of another one")
    return known


def recall(id: bytes) -> Codebook | None:
    """The codebook of an id, if it is known in this process."""
    return _KNOWN.get(id)
