"""Codes in as few bits as their probabilities allow: asymmetric numeral systems (Duda, arXiv 1311.2540).

The coder is constriction's `AnsCoder` (Bamler, arXiv 2201.01741) with its defaults; docs/wire.md describes it for other
languages. Probabilities are ratios of whole numbers from the codebook, so that both ends compute the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import constriction
import numpy as np
import numpy.typing as npt

from latentwire.core.errors import WireError

AnsCoder, Categorical = constriction.stream.stack.AnsCoder, constriction.stream.model.Categorical
Codes = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int32]


class Column:
    """Relative frequencies of a column's codes: (rows, size).

    One row, which always holds; or size + 1, where row p + 1 holds for a code behind a p in the latent before, and row
    0 for the first latent of a message; or, where the column cuts the cells of another one (`refines`) into smaller
    ones, a row for each of those. What stands for a code of such a column is (cell that is cut) * size + code.
    """

    def __init__(self, counts: Counts, refines: int | None = None):
        self.counts = counts
        self.refines = refines
        self._models: dict[int, Any] = {}

    @property
    def size(self) -> int:
        return self.counts.shape[1]

    @property
    def ordered(self) -> bool:
        """Whether they depend on the latent before."""
        return self.refines is None and len(self.counts) > 1

    def rows(self, codes: Codes, starts: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
        """The row that holds for each of some codes (N,), where `starts` marks the first latents of messages."""
        return np.where(starts, 0, np.roll(codes, 1) + 1) if self.ordered else (codes // self.size).astype(np.intp)

    def model(self, row: int) -> Any:
        """The coder's model of a row, made when it is first asked for."""
        if row not in self._models:
            self._models[row] = Categorical(self.counts[row].astype(np.float64), perfect=False)
        return self._models[row]

    def bits(self, codes: Codes, starts: npt.NDArray[np.bool_], where: npt.NDArray[np.intp] | None = None) -> float:
        """Bits that codes (N,) take, or those of them at the places `where`."""
        rows = self.rows(codes, starts)
        shares = self.counts[rows, codes % self.size] / self.counts.sum(1)[rows]
        return float(-np.log2(shares if where is None else shares[where]).sum())


def encode_columns(codes: Codes, columns: Sequence[Column], least: int = 0) -> bytes:
    """Codes (M, columns) of one message. Zeros fill them up to `least` bytes."""
    coder = AnsCoder()
    starts = np.arange(len(codes)) == 0
    for own, column in zip(reversed(codes.T), reversed(columns), strict=True):
        symbols = np.ascontiguousarray(own % column.size, np.int32)
        if len(column.counts) > 1:
            table = column.counts[column.rows(own, starts)].astype(np.float64)
            coder.encode_reverse(symbols, Categorical(perfect=False), table)
        else:
            coder.encode_reverse(symbols, column.model(0))
    data: bytes = coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
    return data.ljust(least, b"\0")


def decode_columns(data: bytes, known: Codes, columns: Sequence[Column], least: int = 0) -> Codes:
    """The codes (M, columns) back, behind those of the layers before, `known` (M, columns before); WireError where the
    bytes are not what `encode_columns` writes."""
    count = len(known)
    if len(data) < least or (len(data) > least and not data[-1]):
        raise WireError(f"message payload of {len(data)} bytes for {count} latents: cut off, or not in shortest form")
    words = np.frombuffer(data.ljust(-(-len(data) // 4) * 4, b"\0"), "<u4").astype(np.uint32)
    used = np.flatnonzero(words)
    coder = AnsCoder(words[: used[-1] + 1]) if len(used) else AnsCoder()
    out = np.concatenate([known, np.empty((count, len(columns)), np.int32)], 1)
    for own, column in zip(out.T[known.shape[1] :], columns, strict=True):
        if column.refines is not None:
            cells = out[:, column.refines]
            table = column.counts[cells].astype(np.float64)
            own[:] = cells * column.size + coder.decode(Categorical(perfect=False), table)
        elif column.ordered:
            row = 0
            for latent in range(count):
                own[latent] = code = coder.decode(column.model(row))
                row = code + 1
        else:
            own[:] = coder.decode(column.model(0), count)
    if not coder.is_empty():
        raise WireError("message payload holds more than its latents")
    return out
