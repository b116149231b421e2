"""The frame around a payload. No torch.

offset  bytes  content
0       4      magic "LWIR"
4       1      version (1)
5       1      codec id
6       2      latents M, little-endian
8       2      width d_z, little-endian
10      4      CRC-32 of bytes 0-9 and the payload, little-endian
14      ...    payload
"""

from __future__ import annotations

import struct
import zlib

from latentwire.core.errors import WireError

MAGIC = b"LWIR"
VERSION = 1
_FIXED = struct.Struct("<4sBBHH")
_CRC = struct.Struct("<I")
SIZE = _FIXED.size + _CRC.size


def pack(codec: int, latents: int, d_z: int, payload: bytes) -> bytes:
    """Frame a payload."""
    if not (0 < latents < 1 << 16 and 0 < d_z < 1 << 16):
        raise WireError(f"a message of {latents} latents of width {d_z} does not fit the frame (at most 65,535 each)")
    fixed = _FIXED.pack(MAGIC, VERSION, codec, latents, d_z)
    return fixed + _CRC.pack(zlib.crc32(payload, zlib.crc32(fixed))) + payload


def unpack(data: bytes) -> tuple[int, int, int, bytes]:
    """Codec id, latents, d_z and payload of a frame; WireError where it is not one."""
    if len(data) < SIZE:
        raise WireError(f"message of {len(data)} bytes: shorter than its header of {SIZE}")
    magic, version, codec, latents, d_z = _FIXED.unpack_from(data)
    if magic != MAGIC:
        raise WireError("not a LatentWire message")
    if version != VERSION:
        raise WireError(f"message of version {version}; this reader knows version {VERSION}")
    payload = data[SIZE:]
    if _CRC.unpack_from(data, _FIXED.size)[0] != zlib.crc32(payload, zlib.crc32(data[: _FIXED.size])):
        raise WireError("message damaged: its checksum does not match")
    if not latents or not d_z:
        raise WireError("message without latents")
    return codec, latents, d_z, payload
