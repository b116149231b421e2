"""Finite scalar quantisation (Mentzer et al., arXiv 2309.15505): each dimension on its own, to a few levels.

Dimensions are principal components in the order of their variance, and those that vary more get more levels. Levels are
told coarse to fine, a cell of some levels first and then which of its thirds, so that payload layers refine all
dimensions in turn: embedded quantisation, as in wavelet image coders (Shapiro 1993, doi 10.1109/78.258085).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentwire.wire.codebook import Codebook
from latentwire.wire.codecs.base import Array
from latentwire.wire.codecs.learned import LearnedCodec
from latentwire.wire.entropy import Codes


@dataclass(frozen=True)
class FiniteScalarCodec(LearnedCodec):
    """The nearest level of each dimension, and the cells of its coarser columns that it lies in."""

    def codes(self, book: Codebook, y: Array) -> Codes:
        codes, coarser = np.empty((len(y), len(book.columns)), np.int32), set(book.refines)
        for number in reversed(range(len(book.columns))):
            own, column = codes[:, number], book.columns[number]
            if number not in coarser:
                words = book.codewords[number][:, 0]
                inside = y[:, book.dims[number], None].clip(words.min(), words.max())  # far away all are as near
                own[:] = np.abs(inside - words).argmin(1)
            if column.refines is not None:
                codes[:, column.refines] = own // column.size
        return codes

    def vectors(self, book: Codebook, codes: Codes) -> Array:
        y = np.zeros((len(codes), len(book.back)), np.float32)
        for dim, words, own in zip(book.dims, book.codewords, codes.T, strict=False):
            y[:, dim] = words[own, 0]  # of the finest column that is there
        return y
