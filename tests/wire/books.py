"""Small codebooks for tests."""

from __future__ import annotations

from latentwire.wire.codebook import Codebook
from latentwire.wire.codecs import CODECS, LearnedCodec
from latentwire.wire.samples import sample_codebook

PLAIN = [name for name, codec in CODECS.items() if not isinstance(codec, LearnedCodec)]
"""Codecs that need no codebook."""
D_Z, LAYERS = 12, 3
SIZES = {"rvq": [16, 16, 3, 3, 5], "fsq": [9, 7, 5, 3, 3], "aq": [40] * 5}


def small_book(kind: str, seed: int = 0) -> Codebook:
    """A codebook for latents of width 12, in five columns: some with, some without regard to the previous latent."""
    return sample_codebook(kind, D_Z, 5, SIZES[kind], seed)


def small_codec(kind: str, seed: int = 0) -> LearnedCodec:
    """A learned codec with such a codebook."""
    codec = CODECS[kind]
    assert isinstance(codec, LearnedCodec)
    return codec.with_book(small_book(kind, seed))
