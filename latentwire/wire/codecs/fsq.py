"""Finite scalar quantisation (Mentzer et al., arXiv 2309.15505): each dimension on its own, to a few levels.

Dimensions are principal components in the order of their variance, and all are cut in steps of about the same size, so
that those which vary more get more levels: reverse water-filling, as in transform coding.
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
    """The nearest level of each of the first C dimensions; the others are zero."""

    def codes(self, book: Codebook, y: Array) -> Codes:
        columns = [np.abs(y[:, column, None] - levels[:, 0]).argmin(1) for column, levels in enumerate(book.codewords)]
        return np.stack(columns, 1).astype(np.int32)

    def vectors(self, book: Codebook, codes: Codes) -> Array:
        y = np.zeros((len(codes), len(book.back)), np.float32)
        for column, (levels, code) in enumerate(zip(book.codewords, codes.T, strict=False)):
            y[:, column] = levels[code, 0]
        return y
