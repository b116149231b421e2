"""A message: latents of one text in a codec's bytes, the text itself, or both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np

from latentwire.core.errors import WireError
from latentwire.wire.codecs import Array, Codec, codec_of_frame, parse_codec
from latentwire.wire.frame import Frame, LatentSection, read_frames
from latentwire.wire.text import pack_text, text_size, unpack_text


@dataclass(frozen=True)
class Wire:
    """One message, encoded. What `latents` and `text` give is what its bytes say: a sender sees what receivers get."""

    frame: Frame

    @classmethod
    def of(
        cls,
        latents: Any = None,
        codec: str | Codec = "fp16",
        *,
        text: str | None = None,
        sender: bytes | None = None,
        more: bool = False,
    ) -> Wire:
        """Encode latents (M, d_z), anything that numpy takes, and the text, or one of them.

        sender: fingerprint of the sender (8 bytes); more: the text goes on in the next message.
        """
        section = codebook = None
        if latents is not None:
            codec = parse_codec(codec) if isinstance(codec, str) else codec
            with np.errstate(over="ignore"):  # what is too large is refused below
                z = np.ascontiguousarray(latents, np.float32)
            if z.ndim != 2 or not z.size:
                raise WireError(f"latents of shape {z.shape}, not (M, d_z) with one number at least")
            if not np.isfinite(z).all():
                raise WireError("latents hold NaN or inf")
            layers = tuple(codec.encode(z))
            section, codebook = LatentSection(codec.id, codec.parameters, len(z), z.shape[1], layers), codec.codebook
        packed = None if text is None else pack_text(text)
        wire = cls(Frame(section, packed, sender, codebook, more))
        wire.to_bytes()  # whatever does not fit a frame is refused here
        return wire

    def to_bytes(self) -> bytes:
        """The whole message, header included, in the newest version of the format."""
        return self._bytes

    @cached_property
    def _bytes(self) -> bytes:
        return self.frame.pack()

    @classmethod
    def from_bytes(cls, data: bytes) -> Wire:
        """Parse and decode one message; WireError where it is damaged, unknown or holds NaN or inf.

        What it allocates is bounded by a multiple of the message. Latents that need a codebook are decoded when asked
        for, since a reader without it may still use the text.
        """
        wire = cls(Frame.unpack(bytes(data)))
        wire.check()
        return wire

    def check(self) -> None:
        """Decode what its frame holds, as `from_bytes` does of a frame that it has parsed."""
        section, codec, _ = self.frame.latents, self.codec, self.text
        if section is not None and codec is not None:
            codec.check(section.layers, section.count)
        if self.frame.codebook is None:
            _ = self.latents

    @cached_property
    def codec(self) -> Codec | None:
        """The codec of its latents, if it has any."""
        section = self.frame.latents
        if section is None:
            return None
        return codec_of_frame(section.codec, section.parameters, self.frame.codebook, self.frame.version)

    @property
    def latent_count(self) -> int:
        """How many latents it holds, which is known without decoding them; 0 in a message of text alone."""
        return 0 if self.frame.latents is None else self.frame.latents.count

    @cached_property
    def latents(self) -> Array | None:
        """Its latents (M, d_z), fp32, as the receiver gets them; None in a message of text alone."""
        section = self.frame.latents
        if section is None or self.codec is None:
            return None
        z = self.codec.decode(section.layers, section.count, section.d_z)
        if not np.isfinite(z).all():
            raise WireError("message holds NaN or inf")
        return z

    @property
    def text_size(self) -> int:
        """The bytes of its text in UTF-8, which are known without unpacking it; 0 in a message without text."""
        return 0 if self.frame.text is None else text_size(self.frame.text)

    @cached_property
    def text(self) -> str | None:
        """The text that it carries, if any."""
        return None if self.frame.text is None else unpack_text(self.frame.text)

    def prefix(self, layers: int) -> Wire:
        """The same message with only the first layers of its latents: coarser, and shorter."""
        section = self.frame.latents
        if section is None or not 0 < layers <= len(section.layers):
            there = 0 if section is None else len(section.layers)
            raise WireError(f"the first {layers} layers of a message that has {there}")
        return Wire(replace(self.frame, latents=replace(section, layers=section.layers[:layers])))

    def misfit(self, sender: bytes | None, d_z: int, count: int | None = None) -> str | None:
        """Why a reader trained for this sender, width and, if it is fixed, number of latents cannot read these; None
        where it can.

        A message without a fingerprint (version 1) or a reader that knows none is judged by the width alone.
        """
        section = self.frame.latents
        if section is None:
            return "the message holds no latents"
        if self.frame.sender and sender and self.frame.sender != sender:
            return f"the message comes from sender {self.frame.sender.hex()}; the reader expects {sender.hex()}"
        if section.d_z != d_z:
            return f"the message has latents of width {section.d_z}; the reader expects {d_z}"
        if count is not None and section.count != count:
            return f"the message has {section.count} latents; the reader expects {count}"
        return None


def read_wires(stream: BinaryIO) -> Iterator[Wire]:
    """The messages of a binary stream, one by one; WireError at the first that is none."""
    return map(Wire.from_bytes, read_frames(stream))


def read_texts(stream: BinaryIO) -> Iterator[tuple[Wire, ...]]:
    """The messages of a stream, those of one text together; WireError where the stream ends before a text does."""
    return by_text(read_wires(stream))


def by_text(wires: Iterable[Wire]) -> Iterator[tuple[Wire, ...]]:
    """Messages, those of one text together; WireError where they end before a text does."""
    parts: list[Wire] = []
    for wire in wires:
        parts.append(wire)
        if not wire.frame.more:
            yield tuple(parts)
            parts = []
    if parts:
        raise WireError(f"the stream ends inside a text: after part {len(parts)}, more were to come")
