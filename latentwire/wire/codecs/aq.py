"""Additive quantisation (Babenko & Lempitsky 2014, doi 10.1109/CVPR.2014.124) with a codeword for every token.

A latent of window features is a sum over the tokens that are read for it, so it is coded as a sum of what tokens add:
one of the sender's vocabulary in each column. A codeword is a short vector, the same in all columns, times the column's
matrix, so that a vocabulary takes little room. A writer looks for the tokens in the latent itself; it need not be told.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latentwire.wire.codebook import Codebook
from latentwire.wire.codecs.base import Array
from latentwire.wire.codecs.learned import LearnedCodec
from latentwire.wire.entropy import Codes

SWEEPS, TOGETHER = 4, 256
"""Rounds over the columns at most, and latents that are coded at once."""


@dataclass(frozen=True)
class AdditiveCodec(LearnedCodec):
    """The codewords whose sum is nearest, as far as changing one column at a time finds them (iterated conditional
    modes, Besag 1986)."""

    def codes(self, book: Codebook, y: Array) -> Codes:
        parts = [y[start : start + TOGETHER] for start in range(0, len(y), TOGETHER)]
        return np.concatenate([_nearest(book, part) for part in parts])

    def vectors(self, book: Codebook, codes: Codes) -> Array:
        columns = zip(book.codewords, book.maps, codes.T, strict=False)
        return np.asarray(sum(words[own] @ into for words, into, own in columns), np.float32)


def _nearest(book: Codebook, y: Array) -> Codes:
    codes = np.full((len(y), len(book.sizes)), -1, np.int32)
    told = np.zeros_like(y)  # by all columns
    for sweep in range(SWEEPS):
        before = codes.copy()
        for column, (words, into) in enumerate(zip(book.codewords, book.maps, strict=True)):
            others = told - words[codes[:, column]] @ into if sweep else told
            codes[:, column] = (book.lengths[column] - 2 * ((y - others) @ into.T) @ words.T).argmin(1)
            told = others + words[codes[:, column]] @ into
        if (codes == before).all():
            break
    return codes
