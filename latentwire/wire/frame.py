"""The frame of a message: all fields around the codec's payload. docs/wire.md describes it byte by byte."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from typing import BinaryIO

from latentwire.core.errors import WireError

MAGIC = b"LWIR"
VERSION = 2
SENDER_BYTES, CODEBOOK_BYTES = 8, 4
MOST = 65_535
"""Most latents of a frame, and their greatest width."""
MOST_BODY = (1 << 32) - 1
MOST_LAYERS = MOST_PARAMETERS = 255
_CRC = struct.Struct("<I")
_V1 = struct.Struct("<4sBBHH")
_BLOCK = 1 << 20


class Flag(IntFlag):
    """What a frame of version 2 holds."""

    LATENTS = 1
    TEXT = 2
    SENDER = 4
    CODEBOOK = 8
    MORE = 16


@dataclass(frozen=True)
class LatentSection:
    """Encoded latents: codec id and parameters, count M, width d_z, and payload layers, coarse to fine."""

    codec: int
    parameters: bytes
    count: int
    d_z: int
    layers: tuple[bytes, ...]


@dataclass(frozen=True)
class Frame:
    """One message as its fields. `text` is packed as `wire.text` has it; `more` tells that the text goes on in the
    next frame; `sender` and `codebook` are fingerprints of what made the latents."""

    latents: LatentSection | None = None
    text: bytes | None = None
    sender: bytes | None = None
    codebook: bytes | None = None
    more: bool = False
    version: int = VERSION

    def pack(self) -> bytes:
        """The frame as bytes, always in the newest version."""
        flags, body = Flag(0), []
        if self.sender is not None:
            flags |= Flag.SENDER
            body.append(_sized("sender fingerprint", self.sender, SENDER_BYTES))
        if self.codebook is not None:
            flags |= Flag.CODEBOOK
            body.append(_sized("codebook id", self.codebook, CODEBOOK_BYTES))
        if self.latents is not None:
            flags |= Flag.LATENTS
            body.append(_pack_latents(self.latents))
        if self.text is not None:
            flags |= Flag.TEXT
            body.append(self.text)
        if self.more:
            flags |= Flag.MORE
        _check(flags)
        content = b"".join(body)
        if len(content) > MOST_BODY:
            raise WireError(f"a message of {len(content):,} bytes does not fit a frame (at most {MOST_BODY:,})")
        data = MAGIC + bytes([VERSION, flags]) + varint(len(content)) + content
        return data + _CRC.pack(zlib.crc32(data))

    @classmethod
    def unpack(cls, data: bytes) -> Frame:
        """Parse exactly one frame of any known version; WireError where it is not one."""
        cursor = _Cursor(data)
        if _version(cursor) == 1:
            return _unpack_v1(data)
        flags = cursor.byte()
        length = cursor.varint(MOST_BODY)
        if len(data) != cursor.at + length + _CRC.size:
            raise WireError(f"message of {len(data)} bytes, not the {cursor.at + length + _CRC.size} that it announces")
        if _CRC.unpack_from(data, len(data) - _CRC.size)[0] != zlib.crc32(memoryview(data)[: -_CRC.size]):
            raise WireError("message damaged: its checksum does not match")
        if flags & ~sum(Flag):
            raise WireError(f"message with unknown flags {flags:#04x}")
        _check(Flag(flags))
        cursor.end = len(data) - _CRC.size
        sender = cursor.take(SENDER_BYTES) if flags & Flag.SENDER else None
        codebook = cursor.take(CODEBOOK_BYTES) if flags & Flag.CODEBOOK else None
        latents = _unpack_latents(cursor) if flags & Flag.LATENTS else None
        text = cursor.take(cursor.end - cursor.at) if flags & Flag.TEXT else None
        if cursor.at != cursor.end:
            raise WireError(f"message with {cursor.end - cursor.at} bytes too many")
        return cls(latents, text, sender, codebook, bool(flags & Flag.MORE))


def read_frames(stream: BinaryIO) -> Iterator[bytes]:
    """The bytes of each frame of a stream; WireError where it ends inside one.

    Version 1 has no length field: such a frame is all that is left of a stream. Frames are read in blocks, so that one
    costs no more memory than the bytes that really come, whatever length it announces.
    """
    while head := b"".join(_blocks(stream, len(MAGIC) + 2)):
        cursor = _Cursor(head)
        version = _version(cursor)
        cursor.byte()  # the flags are there
        if version == 1:
            yield head + b"".join(_blocks(stream, None))
            return
        length = b""
        while len(length) < 5 and (byte := stream.read(1)):
            length += byte
            if byte[0] < 0x80:
                break
        size = _Cursor(length).varint(MOST_BODY) + _CRC.size
        yield head + length + b"".join(_blocks(stream, size))


def _blocks(stream: BinaryIO, size: int | None) -> Iterator[bytes]:
    """The next `size` bytes of a stream (all, for None) in blocks; fewer where it ends."""
    left = _BLOCK if size is None else size
    while left and (block := stream.read(min(left, _BLOCK))):
        yield block
        left -= 0 if size is None else len(block)


def varint(value: int) -> bytes:
    """Unsigned LEB128: 7 bits a byte, lowest first, the high bit set in all bytes but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Cursor:
    """Takes fields off the front of data; WireError where there is less than is asked for."""

    def __init__(self, data: bytes):
        self.data = data
        self.at = 0
        self.end = len(data)

    def take(self, size: int) -> bytes:
        if size > self.end - self.at:
            raise WireError(f"message cut off: {size} bytes expected at {self.at}, {self.end - self.at} there")
        self.at += size
        return self.data[self.at - size : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, most: int) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if value > most:
                raise WireError(f"message with a number above {most:,} at {self.at - 1}")
            if byte < 0x80:
                if not byte and shift:
                    raise WireError(f"message with a number longer than needed at {self.at - 1}")
                return value
            shift += 7
            if shift > 28:
                raise WireError(f"message with a number above {most:,} at {self.at - 1}")


def _version(cursor: _Cursor) -> int:
    """The version at the start of a frame, if it is a known one."""
    if cursor.take(len(MAGIC)) != MAGIC:
        raise WireError("not a LatentWire message")
    version = cursor.byte()
    if version not in (1, VERSION):
        raise WireError(f"message of version {version}; this reader knows versions 1 and {VERSION}")
    return version


def _pack_latents(section: LatentSection) -> bytes:
    if not (0 < section.count <= MOST and 0 < section.d_z <= MOST):
        raise WireError(f"{section.count} latents of width {section.d_z} do not fit a frame (1 to {MOST:,} each)")
    if not 0 < len(section.layers) <= MOST_LAYERS or len(section.parameters) > MOST_PARAMETERS:
        raise WireError(f"{len(section.layers)} layers and {len(section.parameters)} bytes of parameters: at most 255")
    lengths = b"".join(varint(len(layer)) for layer in section.layers)
    head = bytes([section.codec, len(section.parameters)]) + section.parameters
    size = varint(section.count) + varint(section.d_z) + bytes([len(section.layers)])
    return head + size + lengths + b"".join(section.layers)


def _unpack_latents(cursor: _Cursor) -> LatentSection:
    codec = cursor.byte()
    parameters = cursor.take(cursor.byte())
    count, d_z = cursor.varint(MOST), cursor.varint(MOST)
    lengths = [cursor.varint(MOST_BODY) for _ in range(cursor.byte())]
    if not (count and d_z and lengths):
        raise WireError("message without latents")
    return LatentSection(codec, parameters, count, d_z, tuple(cursor.take(length) for length in lengths))


def _unpack_v1(data: bytes) -> Frame:
    """Version 1: magic, version, codec, count and width in 16 bits each, CRC-32 of these and the payload, payload."""
    size = _V1.size + _CRC.size
    if len(data) < size:
        raise WireError(f"message of {len(data)} bytes: shorter than its header of {size}")
    _, _, codec, count, d_z = _V1.unpack_from(data)
    payload = data[size:]
    if _CRC.unpack_from(data, _V1.size)[0] != zlib.crc32(payload, zlib.crc32(data[: _V1.size])):
        raise WireError("message damaged: its checksum does not match")
    if not (count and d_z):
        raise WireError("message without latents")
    return Frame(LatentSection(codec, b"", count, d_z, (payload,)), version=1)


def _check(flags: Flag) -> None:
    if not flags & (Flag.LATENTS | Flag.TEXT):
        raise WireError("message with neither latents nor text")
    if flags & Flag.CODEBOOK and not flags & Flag.LATENTS:
        raise WireError("message with a codebook but no latents")


def _sized(what: str, value: bytes, size: int) -> bytes:
    if len(value) != size:
        raise WireError(f"{what} of {len(value)} bytes, not {size}")
    return value
