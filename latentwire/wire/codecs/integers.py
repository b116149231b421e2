"""Latents in 8, 6 or 4 bits with one scale for each group of dimensions.

Absmax quantisation, as in LLM.int8() (arXiv 2208.07339), in small groups. Scales take 16 bits (IEEE half precision) or
8: its exponent and the upper 3 of its 10 fraction bits, without the sign.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from latentwire.core.errors import WireError
from latentwire.wire.bits import pack_bits, packed_size, unpack_bits
from latentwire.wire.codecs.base import Array, Codec, only_layer

_PARAMETERS = struct.Struct("<HB")
_SCALES = {16: (0, 127, 0x7BFF), 8: (7, 8, 0xF7)}
"""For each number of scale bits: fraction bits left out, and the smallest and largest code that are written. From 127
on, half precision is fine enough for a row's largest magnitude to take the top level; 8 is the smallest normal number.
"""

Levels = npt.NDArray[np.int8]
Codes = npt.NDArray[np.uint16]


def scales_of(codes: Codes, scale_bits: int = 16) -> Array:
    """The scales behind their codes."""
    return (codes << np.uint16(_SCALES[scale_bits][0])).view(np.float16).astype(np.float32)


def quantize(rows: Array, bits: int = 8, scale_bits: int = 16) -> tuple[Levels, Codes]:
    """Signed levels (..., n) and scale codes (..., 1) of rows (..., n): about level * scale each.

    The largest magnitude of a row becomes the top level 2**(bits-1) - 1. An 8-bit scale seldom fits so well: of the two
    next to that, it is the one with the smaller error. Numbers that are on such a grid already come back exactly.
    """
    shift, smallest, largest = _SCALES[scale_bits]
    top = np.float32(2 ** (bits - 1) - 1)
    ideal = np.abs(rows).max(-1, keepdims=True) / top
    nearest = ideal.clip(0, np.finfo(np.float16).max).astype(np.float16).view(np.uint16) >> shift
    if scale_bits == 16:
        codes = nearest.clip(smallest, largest)
        return _levels(rows, scales_of(codes), top), codes
    below = (nearest - (scales_of(nearest, scale_bits) > ideal)).clip(smallest, largest)
    levels, codes, error = _fit(rows, below, scale_bits, top)
    for step in (1, 2):
        new_levels, new_codes, new_error = _fit(
            rows, (below + np.uint16(step)).clip(smallest, largest), scale_bits, top
        )
        # Two steps up is too coarse, unless the numbers come from that very grid.
        better = new_error < error if step == 1 else (new_error == 0) & (error > 0)
        levels = np.where(better, new_levels, levels)
        codes = np.where(better, new_codes, codes)
        error = np.where(better, new_error, error)
    return levels, codes


def _levels(rows: Array, scales: Array, top: np.float32) -> Levels:
    return np.rint(rows / scales).clip(-top, top).astype(np.int8)


def _fit(rows: Array, codes: Codes, scale_bits: int, top: np.float32) -> tuple[Levels, Codes, npt.NDArray[np.float64]]:
    """Levels under these scales, and their squared errors (..., 1)."""
    scales = scales_of(codes, scale_bits)
    levels = _levels(rows, scales, top)
    return levels, codes, np.square(levels * scales - rows, dtype=np.float64).sum(-1, keepdims=True)


@dataclass(frozen=True)
class IntegerCodec(Codec):
    """Scales of all groups, row by row, then all levels, row by row, as two's complement of `bits` bits.

    `group` dimensions share a scale (the last group of a latent may be shorter); 0 stands for a whole latent.
    """

    bits: int
    group: int = 0
    scale_bits: int = 16

    @property
    def parameters(self) -> bytes:
        """Group (16 bits, little-endian) and scale bits (8); nothing for whole latents with 16-bit scales."""
        return b"" if (self.group, self.scale_bits) == (0, 16) else _PARAMETERS.pack(self.group, self.scale_bits)

    def configured(self, settings: Mapping[str, int]) -> IntegerCodec:
        super().configured({key: value for key, value in settings.items() if key not in ("group", "scale_bits")})
        changed = replace(self, **settings)  # type: ignore[arg-type]
        if not 0 <= changed.group <= 65_535:
            raise WireError(f"codec {self.name!r}: group is 0 (a whole latent) to 65,535, not {changed.group}")
        if changed.scale_bits not in _SCALES:
            raise WireError(f"codec {self.name!r}: scale_bits is 8 or 16, not {changed.scale_bits}")
        return changed

    def from_frame(self, parameters: bytes, codebook: bytes | None) -> IntegerCodec:
        super().from_frame(b"", codebook)
        if parameters and len(parameters) != _PARAMETERS.size:
            raise WireError(f"codec {self.name!r}: {len(parameters)} bytes of parameters, not {_PARAMETERS.size}")
        group, scale_bits = _PARAMETERS.unpack(parameters) if parameters else (0, 16)
        return self.configured({"group": group, "scale_bits": scale_bits})

    def _shape(self, d_z: int) -> tuple[int, int]:
        """Groups of a latent, and dimensions of a group."""
        size = min(self.group or d_z, d_z)
        return -(-d_z // size), size

    def encode(self, z: Array) -> list[bytes]:
        (count, d_z), (groups, size) = z.shape, self._shape(z.shape[1])
        padded = np.pad(z, ((0, 0), (0, groups * size - d_z))).reshape(count, groups, size)
        levels, codes = quantize(padded, self.bits, self.scale_bits)
        flat = levels.reshape(count, groups * size)[:, :d_z].reshape(-1)
        codes_kind = "<u2" if self.scale_bits == 16 else "u1"
        return [codes.astype(codes_kind).tobytes() + pack_bits(flat.view(np.uint8) & (2**self.bits - 1), self.bits)]

    def decode(self, layers: Sequence[bytes], count: int, d_z: int) -> Array:
        groups, size = self._shape(d_z)
        scale_bytes = count * groups * self.scale_bits // 8
        payload = only_layer(layers, scale_bytes + packed_size(count * d_z, self.bits))
        codes_kind = "<u2" if self.scale_bits == 16 else "u1"
        codes = np.frombuffer(payload[:scale_bytes], codes_kind).astype(np.uint16)
        scales = scales_of(codes, self.scale_bits).reshape(count, groups)
        if not np.isfinite(scales).all():
            raise WireError("message holds NaN or inf")
        unsigned = unpack_bits(payload[scale_bytes:], self.bits, count * d_z)
        sign = np.uint8(1 << self.bits - 1)
        levels = ((unsigned ^ sign) - sign).view(np.int8).reshape(count, d_z)
        return levels * np.repeat(scales, size, axis=1)[:, :d_z]

    def __str__(self) -> str:
        return f"{self.name}:group={self.group},scale_bits={self.scale_bits}"
