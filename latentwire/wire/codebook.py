"""What the two ends of a wire share beyond its messages: rotation, codewords, probabilities. No torch.

A codebook is found in training and named by its content. Those that were loaded in this process are known by their
ids, so that a message's latents can be decoded wherever its codebook is at hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from latentwire.core.errors import CheckpointError
from latentwire.wire.entropy import Column
from latentwire.wire.frame import CODEBOOK_BYTES, MOST, MOST_LAYERS

Array = npt.NDArray[Any]
FORMS: dict[str, tuple[str, int]] = {
    "mean": ("<f2", 1),
    "into": ("<f2", 2),
    "back": ("<f2", 2),
    "layers": ("<i4", 1),
    "sizes": ("<i4", 1),
    "orders": ("<i4", 1),
    "codewords": ("<f2", 2),
    "maps": ("<f2", 2),
    "counts": ("<i4", 1),
    "dims": ("<i4", 1),
    "scale": ("<f2", 1),
}
OPTIONAL = ("into", "maps", "dims", "scale")
"""Types and dimensions of a codebook's arrays, and those that may be missing; with a scale, back is in bytes."""
KINDS = ("rvq", "fsq", "aq")
"""Codecs that have codebooks: of vectors that add up, of the levels of single dimensions, of a vocabulary."""
MOST_SIZE, MOST_ORDERED, MOST_SHARED = 1 << 12, 1 << 8, 1 << 20
"""Most cells of a column, codes of one whose frequencies depend on something, and codes that all columns share."""
LIMITS = (
    ("layers", 0, MOST_LAYERS, "payload layers"),
    ("sizes", 0, MOST, "columns"),
    ("mean", 0, MOST, "dimensions of a latent"),
    ("back", 0, MOST, "dimensions of y"),
    ("codewords", -1, MOST, "numbers of a codeword"),
)
"""Longest axes of arrays: a few bytes of a message may claim a number for each of up to 1,024 latents."""


class Codebook:
    """The arrays of a learned codec, of width k in C columns of codes.

    A latent z is coded as y = (z - mean) @ into, and read as mean + y @ back.

    mean: (d_z,); into: (d_z, k), the inverse of back where it is missing, and k = d_z then; back: (k, d_z), in 8 bits
    where there is a scale (k,) of each of its rows.
    sizes: (C,) codes that a column has. layers: (L,) columns that the first 1 to L payload layers hold together.
    dims: (C,) the dimension of y that a column is about (fsq only; without it column c is about dimension c). The first
    column of a dimension tells which of its cells y is in; each later one cuts every cell that is known into `sizes`
    smaller ones. So a column has `cells`: as many as it has codes, times those of the column that it `refines`.
    codewords: (sum of cells, w) what each cell stands for, column by column: a vector of width w = k (rvq), or a number
    (w = 1, fsq). aq: (sizes, w), the same in all columns, of which column c has maps[c * w : (c + 1) * w] to make a
    vector of it; maps: (C * w, k), aq only.
    orders: (C,) 0 where a code's probability is always the same, 1 where it depends on the previous latent's code in
    the same column. counts: relative frequencies, column by column: one row of `sizes` numbers; with order 1 one more
    for each code that the previous latent may have; one for each cell of the column that is refined, where one is.
    """

    def __init__(self, kind: str, arrays: Mapping[str, Array]):
        self.kind = kind
        self.arrays = self._stored(arrays)
        self._require(self._well_formed())
        self.mean = self._floats("mean")
        self.back = self._floats("back")
        if "scale" in self.arrays:
            self.back *= self._floats("scale")[:, None]
        self.layers, self.sizes, self.orders = (self.arrays[n].tolist() for n in ("layers", "sizes", "orders"))
        self.dims: list[int] = self.arrays.get("dims", np.arange(len(self.sizes))).tolist()
        self.refines = refined(self.dims)
        self.cells = cells_of(self.sizes, self.refines)
        self.rows = rows_of(self.sizes, self.orders, self.refines, self.cells)
        self._require(self._fits())
        self.codewords: list[Array]
        self.maps: list[Array] = []
        if kind == "aq":
            self.codewords = [self._floats("codewords")] * len(self.sizes)
            self.maps = np.split(self._floats("maps"), len(self.sizes))
        else:
            self.codewords = np.split(self._floats("codewords"), np.cumsum(self.cells)[:-1])
        self.columns = [Column(table, by) for table, by in zip(self._tables(), self.refines, strict=True)]

    def _stored(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays in the types in which they are stored; CheckpointError where one is missing, too long, or not of whole
        numbers where it has to be."""
        missing = sorted(FORMS.keys() - arrays.keys() - set(OPTIONAL))
        if missing:
            raise CheckpointError(f"codebook of {self.kind!r}: {missing[0]} is missing")
        with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is refused later
            stored = {
                name: np.ascontiguousarray(arrays[name], form_of(name, arrays)) for name in FORMS if name in arrays
            }
        for name, axis, most, what in LIMITS:
            length = stored[name].shape[axis]
            if length > most:
                raise CheckpointError(f"codebook of {self.kind!r}: {length:,} {what}, at most {most:,}")
        whole = {name: array for name, array in stored.items() if array.dtype.kind == "i"}
        self._require(all(np.array_equal(array, arrays[name]) for name, array in whole.items()))
        return stored

    def _floats(self, name: str) -> Array:
        return self.arrays[name].astype(np.float32)

    def _require(self, condition: bool) -> None:
        if not condition:
            raise CheckpointError(f"codebook of {self.kind!r}: its arrays do not fit together")

    def _well_formed(self) -> bool:
        """Whether each array has the shape that the others ask for, as far as that does not depend on cells."""
        arrays = self.arrays
        if self.kind not in KINDS or not all(a.ndim == FORMS[n][1] and a.size for n, a in arrays.items()):
            return False
        most = MOST_SHARED if self.kind == "aq" else MOST_SIZE
        (k, d_z), columns, sizes = arrays["back"].shape, len(arrays["sizes"]), arrays["sizes"]
        return (
            arrays["mean"].shape == (d_z,)
            and (arrays["into"].shape == (d_z, k) if "into" in arrays else k == d_z)
            and arrays.get("scale", np.zeros(k)).shape == (k,)
            and arrays["orders"].shape == arrays.get("dims", sizes).shape == (columns,)
            and bool(((sizes > 1) & (sizes <= most)).all() and np.isin(arrays["orders"], (0, 1)).all())
            and bool((np.diff(arrays["layers"].astype(np.int64), prepend=0) > 0).all())
            and int(arrays["layers"][-1]) == columns
            and all(bool(np.isfinite(array).all()) for array in arrays.values())
        )

    def _fits(self) -> bool:
        """Whether columns, cells and frequencies belong together."""
        k = len(self.back)
        contexts = [order + (by is not None) for order, by in zip(self.orders, self.refines, strict=True)]
        return (
            (all(0 <= dim < k for dim in self.dims) if self.kind == "fsq" else "dims" not in self.arrays)
            and max(contexts) <= 1
            and all(size <= MOST_ORDERED for size, context in zip(self.sizes, contexts, strict=True) if context)
            and self._words_fit(k)
            and self.arrays["counts"].shape == (int(np.dot(self.sizes, self.rows)),)
            and bool((self.arrays["counts"] > 0).all())
        )

    def _words_fit(self, k: int) -> bool:
        shape, maps = self.arrays["codewords"].shape, self.arrays.get("maps")
        if self.kind == "aq":
            columns, size = len(self.sizes), self.sizes[0]
            shared = shape[0] == size and set(self.sizes) == {size}
            return shared and maps is not None and maps.shape == (columns * shape[1], k)
        width = k if self.kind == "rvq" else 1
        return maps is None and max(self.cells) <= MOST_SIZE and shape == (sum(self.cells), width)

    def _tables(self) -> Iterator[Array]:
        """(rows, size) relative frequencies of each column."""
        at = 0
        for size, rows in zip(self.sizes, self.rows, strict=True):
            yield self.arrays["counts"][at : at + rows * size].reshape(rows, size)
            at += rows * size

    @cached_property
    def into(self) -> Array:
        """(d_z, k) what only a writer needs; CheckpointError where back has no inverse."""
        if "into" in self.arrays:
            return self._floats("into")
        try:
            inverse = np.linalg.inv(self.back.astype(np.float64)).astype(np.float32)
        except np.linalg.LinAlgError:
            inverse = np.zeros_like(self.back)
        if not np.allclose(self.back @ inverse, np.eye(len(inverse)), atol=0.01):
            raise CheckpointError(f"codebook of {self.kind!r}: back has no inverse")
        return inverse

    @cached_property
    def lengths(self) -> list[Array]:
        """By column, the squared length (size,) of each codeword that columns share: only a writer needs it. By way of
        the smaller of w and k, so that what it takes is no larger than the arrays."""
        return [
            np.einsum("vr,vr->v", w @ (a @ a.T), w) if len(a) <= len(self.back) else np.square(w @ a).sum(1)
            for w, a in zip(self.codewords, self.maps, strict=True)
        ]

    @cached_property
    def id(self) -> bytes:
        """The first 4 bytes of the SHA-256 of its kind and arrays, in the order of FORMS (docs/wire.md)."""
        digest = hashlib.sha256(self.kind.encode())
        for array in self.arrays.values():
            digest.update(array.tobytes())
        return digest.digest()[:CODEBOOK_BYTES]

    def same_as(self, other: Codebook) -> bool:
        """Whether two codebooks are equal in everything."""
        return (self.kind, self.arrays.keys()) == (other.kind, other.arrays.keys()) and all(
            np.array_equal(array, other.arrays[name]) for name, array in self.arrays.items()
        )

    @property
    def d_z(self) -> int:
        """Width of the latents that it codes."""
        return len(self.mean)


def form_of(name: str, among: Container[str]) -> str:
    """The type of an array, among those of its codebook."""
    return "|i1" if name == "back" and "scale" in among else FORMS[name][0]


def refined(dims: Sequence[int]) -> list[int | None]:
    """For each column, by the dimension that it is about: the last one before it of the same dimension, if any."""
    last: dict[int, int] = {}
    out = []
    for column, dim in enumerate(dims):
        out.append(last.get(dim))
        last[dim] = column
    return out


def cells_of(sizes: Sequence[int], refines: Sequence[int | None]) -> list[int]:
    """Cells of each column; of one that refines another, MOST_SIZE + 1 stands for too many."""
    cells: list[int] = []
    for size, by in zip(sizes, refines, strict=True):
        cells.append(size if by is None else min(size * cells[by], MOST_SIZE + 1))
    return cells


def rows_of(
    sizes: Sequence[int], orders: Sequence[int], refines: Sequence[int | None], cells: Sequence[int]
) -> list[int]:
    """How many rows of frequencies each column has: one for each code or cell that its probabilities depend on."""
    rows = []
    for size, order, by in zip(sizes, orders, refines, strict=True):
        if order:
            rows.append(size + 1)  # of the previous latent, or without one
        elif by is not None:
            rows.append(cells[by])
        else:
            rows.append(1)
    return rows


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
