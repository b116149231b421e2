"""Latents as they are, in 32 or 16 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentwire.wire.codecs.base import Array, Codec, only_layer


@dataclass(frozen=True)
class FloatCodec(Codec):
    """Little-endian IEEE 754 numbers, row by row. What is too large for 16 bits becomes the largest finite number."""

    kind: str

    def encode(self, z: Array) -> list[bytes]:
        limit = np.finfo(self.kind).max
        return [z.clip(-limit, limit).astype(self.kind).tobytes()]

    def decode(self, layers: Sequence[bytes], count: int, d_z: int) -> Array:
        payload = only_layer(layers, count * d_z * np.dtype(self.kind).itemsize)
        return np.frombuffer(payload, self.kind).astype(np.float32).reshape(count, d_z)


@dataclass(frozen=True)
class BFloat16Codec(Codec):
    """The upper 16 bits of 32-bit numbers, little-endian, rounded to nearest, ties to even."""

    def encode(self, z: Array) -> list[bytes]:
        limit = np.uint32(0x7F7F0000).view(np.float32)  # rounding must not end in infinity
        bits = z.clip(-limit, limit).view(np.uint32)
        return [((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()]

    def decode(self, layers: Sequence[bytes], count: int, d_z: int) -> Array:
        payload = only_layer(layers, count * d_z * 2)
        bits = np.frombuffer(payload, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(count, d_z)
