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


def encode_columns(codes: Codes, tables: Sequence[Counts], least: int = 0) -> bytes:
    """Codes (M, columns) under the frequencies of their columns: (1, size), or (size + 1, size) where row p + 1 holds
    for codes behind a p and row 0 for the first latent's. Zeros fill it up to `least` bytes."""
    coder = AnsCoder()
    for column, table in zip(reversed(codes.T), reversed(tables), strict=True):
        column = np.ascontiguousarray(column, np.int32)
        if len(table) == 1:
            coder.encode_reverse(column, _model(table[0]))
        else:
            rows = np.concatenate([[0], column[:-1] + 1])
            coder.encode_reverse(column, Categorical(perfect=False), table[rows].astype(np.float64))
    data: bytes = coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
    return data.ljust(least, b"\0")


def decode_columns(data: bytes, count: int, tables: Sequence[Counts], least: int = 0) -> Codes:
    """The codes (count, columns) back; WireError where the bytes are not what `encode_columns` writes."""
    if len(data) < least or (len(data) > least and not data[-1]):
        raise WireError(f"message payload of {len(data)} bytes for {count} latents: cut off, or not in shortest form")
    words = np.frombuffer(data.ljust(-(-len(data) // 4) * 4, b"\0"), "<u4").astype(np.uint32)
    used = np.flatnonzero(words)
    coder = AnsCoder(words[: used[-1] + 1]) if len(used) else AnsCoder()
    out = np.empty((count, len(tables)), np.int32)
    for column, table in enumerate(tables):
        if len(table) == 1:
            out[:, column] = coder.decode(_model(table[0]), count)
        else:
            models, previous = [_model(row) for row in table], 0
            for latent in range(count):
                out[latent, column] = code = coder.decode(models[previous])
                previous = code + 1
    if not coder.is_empty():
        raise WireError("message payload holds more than its latents")
    return out


def code_length(codes: Codes, table: Counts, starts: npt.NDArray[np.bool_]) -> float:
    """Bits that a column of codes (N,) takes; `starts` marks the first latents of messages."""
    probabilities = table / table.sum(1, keepdims=True)
    rows = np.where(starts, 0, np.roll(codes, 1) + 1) if len(table) > 1 else np.zeros_like(codes)
    return float(-np.log2(probabilities[rows, codes]).sum())


def _model(counts: Counts) -> Any:
    return Categorical(counts.astype(np.float64), perfect=False)
