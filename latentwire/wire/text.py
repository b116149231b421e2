"""The text that a message may carry for receivers without a fitting reader.

A first byte tells how it is kept: 0 as UTF-8, 1 as one zstd frame (RFC 8878) with its content size in its header.
"""

from __future__ import annotations

import zstandard

from latentwire.core.errors import WireError
from latentwire.core.unicode import utf8

PLAIN, ZSTD = 0, 1
MOST_EXPANSION = 64
"""A text may be at most so many times longer than its packed form, so that a few bytes cannot claim gigabytes."""


def pack_text(text: str) -> bytes:
    """A text in the shorter form; as UTF-8 also where zstd would shrink it by more than a reader accepts."""
    raw = utf8(text, "the text", WireError)
    if not raw:
        raise WireError("the text is empty: nothing to send")
    packed = zstandard.ZstdCompressor(level=19).compress(raw)
    if len(packed) < len(raw) <= MOST_EXPANSION * len(packed):
        return bytes([ZSTD]) + packed
    return bytes([PLAIN]) + raw


def text_size(data: bytes) -> int:
    """The bytes of the text in UTF-8, told by its packed form, which is not unpacked; WireError where it is none, or
    more than MOST_EXPANSION times as long."""
    kind, content = data[:1], data[1:]
    if not content:
        raise WireError("message with an empty text")
    if kind == bytes([PLAIN]):
        return len(content)
    if kind != bytes([ZSTD]):
        raise WireError(f"message with a text of unknown form {kind[0]}")
    try:
        size: int = zstandard.get_frame_parameters(content).content_size
    except zstandard.ZstdError as error:
        raise WireError(f"message with a damaged text: {error}") from None
    if not 0 < size <= MOST_EXPANSION * len(content):
        raise WireError(f"message with a text of {size:,} bytes in {len(content)}: refused")
    return size


def unpack_text(data: bytes) -> str:
    """The text; WireError where it is not one, before more than `text_size` is allocated."""
    text_size(data)
    content = data[1:]
    if data[0] == ZSTD:
        try:
            content = zstandard.ZstdDecompressor().decompress(content, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise WireError(f"message with a damaged text: {error}") from None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise WireError(f"message with a text that is not UTF-8: {error.reason} at byte {error.start}") from None
