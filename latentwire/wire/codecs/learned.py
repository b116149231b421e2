"""What the learned codecs have in common: rotation, codes in columns, payload layers, entropy coding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from latentwire.core.errors import WireError
from latentwire.wire.codebook import Codebook, recall
from latentwire.wire.codecs.base import Array, Codec
from latentwire.wire.codecs.entropy import Codes, decode_columns, encode_columns

MOST_LATENTS = 4096
"""Of one message, because each takes far more memory than bytes."""
LATENTS_A_BYTE = 2
"""The first payload layer is at least so long that no few bytes can claim many latents."""


@dataclass(frozen=True, eq=False)
class LearnedCodec(Codec):
    """Latents as codes of a codebook: rotated and cut to the dimensions that matter, quantised, entropy coded.

    `layers` is how many payload layers are written; 0 stands for all. Any number of them decodes: what the missing
    ones would add is left out. `missing` is the id of a codebook that a message names and that is not known here.
    """

    book: Codebook | None = None
    missing: bytes | None = None
    layers: int = 0

    @property
    def codebook(self) -> bytes | None:
        return self.missing if self.book is None else self.book.id

    def configured(self, settings: Mapping[str, int]) -> LearnedCodec:
        super().configured({key: value for key, value in settings.items() if key != "layers"})
        return replace(self, **settings)  # type: ignore[arg-type]

    def with_book(self, book: Codebook | None) -> LearnedCodec:
        """The codec with a codebook to write with; WireError where there is none, or not for it."""
        if book is None:
            raise WireError(f"codec {self.name!r}: the checkpoint has no codebook of it (codec.learned trains one)")
        if book.kind != self.name:
            raise WireError(f"codec {self.name!r}: the codebook is one of {book.kind!r}")
        if self.layers > len(book.layers):
            raise WireError(f"codec {self.name!r}: layers is at most {len(book.layers)}, not {self.layers}")
        return replace(self, book=book, missing=None)

    def from_frame(self, parameters: bytes, codebook: bytes | None) -> LearnedCodec:
        super().from_frame(parameters, None)
        if codebook is None:
            raise WireError(f"message without the codebook that codec {self.name!r} needs")
        book = recall(codebook)
        if book is not None and book.kind != self.name:
            raise WireError(f"message of codec {self.name!r} with a codebook of {book.kind!r}")
        return replace(self, book=book, missing=codebook)

    @property
    def readable(self) -> bool:
        return self.book is not None

    def encode(self, z: Array) -> list[bytes]:
        book = self._book(z.shape[1])
        if len(z) > MOST_LATENTS:
            raise WireError(f"{len(z)} latents in one message: codec {self.name!r} takes at most {MOST_LATENTS:,}")
        codes, parts = self.codes(self.rotated(z)), _parts(book)[: self.layers or None]
        return [encode_columns(codes[:, p], book.counts[p], _least(len(z), p)) for p in parts]

    def decode(self, layers: Sequence[bytes], count: int, d_z: int) -> Array:
        book = self._book(d_z)
        parts = _parts(book)
        if count > MOST_LATENTS:
            raise WireError(f"message of {count:,} latents: codec {self.name!r} takes at most {MOST_LATENTS:,}")
        if not 0 < len(layers) <= len(parts):
            raise WireError(f"message of {len(layers)} layers; the codebook has {len(parts)}")
        found = [
            decode_columns(data, count, book.counts[p], _least(count, p))
            for data, p in zip(layers, parts, strict=False)
        ]
        return self.unrotated(self.vectors(np.concatenate(found, 1)))

    def quantized(self, z: Array, layers: int | None = None) -> Array:
        """Latents (M, d_z) as they would arrive in the first so many layers of a message (None: all)."""
        book = self._book(z.shape[1])
        columns = book.layers[(layers or len(book.layers)) - 1]
        return self.unrotated(self.vectors(self.codes(self.rotated(z))[:, :columns]))

    def rotated(self, z: Array) -> Array:
        """(M, k) the dimensions that are coded."""
        book = self._book(z.shape[1])
        return np.asarray((z - book.mean) @ book.into, np.float32)

    def unrotated(self, y: Array) -> Array:
        """(M, d_z) latents from what is coded of them."""
        assert self.book is not None
        return np.asarray(self.book.mean + y @ self.book.back, np.float32)

    @abstractmethod
    def codes(self, y: Array) -> Codes:
        """Codes (M, C) of rotated latents (M, k)."""

    @abstractmethod
    def vectors(self, codes: Codes) -> Array:
        """Rotated latents (M, k) from the codes (M, c) of the first c columns."""

    def _book(self, d_z: int) -> Codebook:
        if self.book is None and self.missing is None:
            self.with_book(None)
        if self.book is None:
            raise WireError(f"the message needs codebook {(self.missing or b'').hex()}, which is not known here")
        if self.book.d_z != d_z:
            raise WireError(f"latents of width {d_z}, but codebook {self.book.id.hex()} is for {self.book.d_z}")
        return self.book

    def __str__(self) -> str:
        return f"{self.name}:layers={self.layers}" if self.layers else self.name


def _least(count: int, part: slice) -> int:
    """Bytes of a payload layer at least: those of the first one."""
    return 0 if part.start else -(-count // LATENTS_A_BYTE)


def _parts(book: Codebook) -> list[slice]:
    """The columns of each payload layer."""
    return [slice(a, b) for a, b in zip([0, *book.layers], book.layers, strict=False)]
