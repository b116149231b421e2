"""Codecs: latents (M, d_z) to a payload and back, one file each kind, behind one registry."""

from __future__ import annotations

import re

from latentwire.core.errors import WireError
from latentwire.wire.codecs.aq import AdditiveCodec
from latentwire.wire.codecs.base import Array, Codec
from latentwire.wire.codecs.floats import BFloat16Codec, FloatCodec
from latentwire.wire.codecs.fsq import FiniteScalarCodec
from latentwire.wire.codecs.integers import IntegerCodec
from latentwire.wire.codecs.learned import LearnedCodec
from latentwire.wire.codecs.rvq import ResidualVectorCodec

CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        FloatCodec("fp32", 1, "<f4"),
        FloatCodec("fp16", 2, "<f2"),
        BFloat16Codec("bf16", 4),
        IntegerCodec("int8", 3, bits=8),
        IntegerCodec("int6", 5, bits=6, group=32, scale_bits=8),
        IntegerCodec("int4", 6, bits=4, group=32, scale_bits=8),
        ResidualVectorCodec("rvq", 7),
        FiniteScalarCodec("fsq", 8),
        AdditiveCodec("aq", 9),
    )
}
"""Every codec by name, with its default settings. Ids are part of the format: they are never given away again."""
BY_ID = {codec.id: codec for codec in CODECS.values()}
V1_IDS = (1, 2, 3)


def parse_codec(spec: str) -> Codec:
    """The codec that a text such as "int4" or "int4:group=64,scale_bits=16" names."""
    name, _, rest = spec.partition(":")
    if name not in CODECS:
        raise WireError(f"codec {name!r} is unknown (there are {', '.join(CODECS)})")
    settings = {}
    for part in rest.split(",") if rest else ():
        found = re.fullmatch(r"\s*(\w+)=(\d{1,9})\s*", part)
        if not found:
            raise WireError(f"codec {spec!r}: {part!r} is not setting=number")
        if found[1] in settings:
            raise WireError(f"codec {spec!r}: {found[1]} is given twice")
        settings[found[1]] = int(found[2])
    return CODECS[name].configured(settings)


def codec_of_frame(id: int, parameters: bytes, codebook: bytes | None, version: int) -> Codec:
    """The codec that wrote a frame; WireError where it is unknown."""
    if id not in BY_ID or (version == 1 and id not in V1_IDS):
        raise WireError(f"message with unknown codec {id} (this reader knows {', '.join(CODECS)})")
    return BY_ID[id].from_frame(parameters, codebook)


__all__ = ["CODECS", "Array", "Codec", "LearnedCodec", "codec_of_frame", "parse_codec"]
