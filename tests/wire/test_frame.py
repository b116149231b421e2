from __future__ import annotations

import struct
import zlib
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire.core.errors import WireError
from latentwire.wire.frame import MAGIC, Frame, LatentSection, read_frames, varint

SECTION = LatentSection(6, b"\1\2\3", 300, 2, (b"abc", b"", b"defg"))
FULL = Frame(SECTION, b"\0text", b"12345678", b"book", True)

sections = st.builds(
    LatentSection,
    st.integers(0, 255),
    st.binary(max_size=255),
    st.integers(1, 65_535),
    st.integers(1, 65_535),
    st.lists(st.binary(max_size=300), min_size=1, max_size=255).map(tuple),
)
frames = st.builds(
    Frame,
    sections,
    st.none() | st.binary(max_size=400),
    st.none() | st.binary(min_size=8, max_size=8),
    st.none() | st.binary(min_size=4, max_size=4),
    st.booleans(),
)


def sealed(flags: int, body: bytes) -> bytes:
    data = MAGIC + bytes([2, flags]) + varint(len(body)) + body
    return data + struct.pack("<I", zlib.crc32(data))


@given(frames)
def test_a_frame_comes_back_as_it_was(frame: Frame) -> None:
    assert Frame.unpack(frame.pack()) == frame


@given(st.lists(frames, max_size=3))
def test_a_stream_is_its_frames_one_behind_the_other(several: list[Frame]) -> None:
    data = [frame.pack() for frame in several]
    assert list(read_frames(BytesIO(b"".join(data)))) == data


def test_the_bytes_around_a_payload_are_few() -> None:
    frame = Frame(LatentSection(3, b"", 15, 512, (bytes(100),)), sender=bytes(8))
    assert len(frame.pack()) == 100 + 4 + 1 + 1 + 1 + 8 + (1 + 1 + 1 + 2 + 1 + 1) + 4


def test_every_cut_and_every_changed_byte_is_refused() -> None:
    data = FULL.pack()
    for at in range(len(data)):
        for broken in (data[:at], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], data[:at] + data[at + 1 :]):
            with pytest.raises(WireError):
                Frame.unpack(broken)
    with pytest.raises(WireError, match="not the"):
        Frame.unpack(data + b"\0")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut off"),
        (b"GIF89a", "not a LatentWire message"),
        (MAGIC + b"\3" + bytes(20), "version 3; this reader knows versions 1 and 2"),
        (sealed(0, b""), "neither latents nor text"),
        (sealed(32 | 2, b"\0a"), "unknown flags 0x22"),
        (sealed(8 | 2, b"book\0a"), "a codebook but no latents"),
        (sealed(1, b"\1\0\0\4\1\1a"), "without latents"),
        (sealed(1, b"\1\0\4\0\1\1a"), "without latents"),
        (sealed(1, b"\1\0\4\4\0a"), "without latents"),
        (sealed(1, b"\1\0\1\1\1\4abcde"), "1 bytes too many"),
        (sealed(1, b"\1\0\1\1\1\4abc"), "cut off: 4 bytes expected"),
        (sealed(1, b"\1\0\x80\x80\x04\1\1\1a"), "a number above 65,535"),
        (sealed(1, b"\1\0\x81\x00\1\1\1a"), "a number longer than needed"),
        (sealed(1, b"\1\0\1\1\1\xff\xff\xff\xff\x7f"), "a number above 4,294,967,295"),
        (sealed(4 | 2, b"short"), "cut off: 8 bytes expected"),
        (MAGIC + b"\1\2\1\0\1\0", "shorter than its header"),
        (MAGIC + b"\1\2\1\0\1\0" + bytes(8), "checksum"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        Frame.unpack(data)


@pytest.mark.parametrize(
    "frame",
    [
        Frame(),
        Frame(LatentSection(1, b"", 0, 4, (b"",))),
        Frame(LatentSection(1, b"", 4, 65_536, (b"",))),
        Frame(LatentSection(1, b"", 4, 4, ())),
        Frame(LatentSection(1, bytes(256), 4, 4, (b"",))),
        Frame(text=b"\0a", codebook=bytes(4)),
        Frame(text=b"\0a", sender=bytes(7)),
    ],
)
def test_what_a_frame_cannot_hold_is_not_packed(frame: Frame) -> None:
    with pytest.raises(WireError):
        frame.pack()


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    for attempt in (data, MAGIC + data, MAGIC + b"\2" + data):
        with pytest.raises(WireError):
            Frame.unpack(attempt)


class Announcing(BytesIO):
    """A stream that notes the largest read that is asked of it."""

    largest = 0

    def read(self, size: int | None = -1) -> bytes:
        self.largest = max(self.largest, size if size is not None and size >= 0 else 1 << 40)
        return super().read(size)


def test_a_stream_is_read_in_blocks_whatever_it_announces() -> None:
    stream = Announcing(MAGIC + b"\2\1" + b"\xff\xff\xff\xff\x0f" + b"only this")
    (data,) = read_frames(stream)
    assert stream.largest <= 1 << 20
    with pytest.raises(WireError, match="not the"):
        Frame.unpack(data)


def test_a_stream_may_come_byte_by_byte() -> None:
    class Slow(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(1)

    assert list(read_frames(Slow(FULL.pack() * 2))) == [FULL.pack()] * 2


@pytest.mark.parametrize("at", range(1, 40))
def test_a_stream_that_ends_inside_a_frame_is_refused(at: int) -> None:
    data = FULL.pack()
    with pytest.raises(WireError):
        for part in read_frames(BytesIO(data + data[:at])):
            assert Frame.unpack(part) == FULL


def test_a_frame_of_version_1_is_the_rest_of_a_stream() -> None:
    head = MAGIC + struct.pack("<BBHH", 1, 2, 1, 2)
    payload = struct.pack("<2e", 1.5, -2.0)
    old = head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload
    assert list(read_frames(BytesIO(FULL.pack() + old))) == [FULL.pack(), old]
