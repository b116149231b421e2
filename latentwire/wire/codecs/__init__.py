"""Codecs: latents (M, d_z) to a payload and back, one file each, behind one registry."""

from latentwire.wire.codecs.floats import FloatCodec
from latentwire.wire.codecs.int8 import Int8Codec
from latentwire.wire.codecs.protocol import Codec

CODECS: dict[str, Codec] = {"fp32": FloatCodec(1, "<f4"), "fp16": FloatCodec(2, "<f2"), "int8": Int8Codec(3)}

__all__ = ["CODECS", "Codec"]
