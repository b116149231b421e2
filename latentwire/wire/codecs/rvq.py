"""Residual vector quantisation (Zeghidour et al., SoundStream, arXiv 2107.03312).

Each column is a codebook; a latent is the sum of one vector from each, chosen one after the other for what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentwire.wire.codebook import Codebook
from latentwire.wire.codecs.base import Array
from latentwire.wire.codecs.learned import LearnedCodec
from latentwire.wire.entropy import Codes


@dataclass(frozen=True)
class ResidualVectorCodec(LearnedCodec):
    """The vector that is nearest to what the columns before have left, column by column."""

    def codes(self, book: Codebook, y: Array) -> Codes:
        codes, rest = np.empty((len(y), len(book.sizes)), np.int32), y
        for column, words in enumerate(book.codewords):
            codes[:, column] = (np.square(words).sum(1) - 2 * rest @ words.T).argmin(1)
            rest = rest - words[codes[:, column]]
        return codes

    def vectors(self, book: Codebook, codes: Codes) -> Array:
        words = zip(book.codewords, codes.T, strict=False)
        return np.asarray(sum(vectors[column] for vectors, column in words), np.float32)
