"""What the learned codecs have in common: rotation, codes in columns, payload layers, entropy coding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from latentwire.core.errors import WireError
from latentwire.wire.codebook import Codebook, recall
from latentwire.wire.codecs.base import Array, Codec
from latentwire.wire.entropy import Codes, decode_columns, encode_columns

MOST_LATENTS = 1024
"""Of one message, because each takes far more memory than bytes."""
LATENTS_A_BYTE = 2
"""The first payload layer is at least so long that no few bytes can claim many latents."""


@dataclass(frozen=True)
class LearnedCodec(Codec):
    """Latents as codes of a codebook: rotated and cut to the dimensions that matter, quantised, entropy coded.

    `layers` is how many payload layers are written; 0 stands for all. Any number of them decodes: what the missing
    ones would add is left out. `named` is the id of the codebook that a message names, which may come to be known
    only after the message was parsed.
    """

    book: Codebook | None = None
    named: bytes | None = None
    layers: int = 0

    @property
    def codebook(self) -> bytes | None:
        return self.named if self.book is None else self.book.id

    def configured(self, settings: Mapping[str, int]) -> LearnedCodec:
        super().configured({key: value for key, value in settings.items() if key != "layers"})
        return replace(self, **settings)  # type: ignore[arg-type]

    def with_book(self, book: Codebook | None) -> LearnedCodec:
        """The codec with a codebook to write with; WireError where there is none, or not for it."""
        if book is None:
            raise WireError(f"codec {self.name!r}: the checkpoint has no codebook of it (codec.learned trains one)")
        if book.kind != self.name:
            raise WireError(f"codec {self.name!r}: codebook {book.id.hex()} is one of {book.kind!r}")
        if self.layers > len(book.layers):
            raise WireError(f"codec {self.name!r}: layers is at most {len(book.layers)}, not {self.layers}")
        return replace(self, book=book)

    def from_frame(self, parameters: bytes, codebook: bytes | None) -> LearnedCodec:
        super().from_frame(parameters, None)
        if codebook is None:
            raise WireError(f"message without the codebook that codec {self.name!r} needs")
        return replace(self, named=codebook)

    def encode(self, z: Array) -> list[bytes]:
        book = self._book(z.shape[1])
        if len(z) > MOST_LATENTS:
            raise WireError(f"{len(z)} latents in one message: codec {self.name!r} takes at most {MOST_LATENTS:,}")
        codes, parts = self.codes(book, self.rotated(z)), _parts(book)[: self.layers or None]
        return [encode_columns(codes[:, p], book.columns[p], _least(len(z), p)) for p in parts]

    def check(self, layers: Sequence[bytes], count: int) -> None:
        if count > MOST_LATENTS:
            raise WireError(f"message of {count:,} latents: codec {self.name!r} takes at most {MOST_LATENTS:,}")
        if layers and len(layers[0]) < _least(count, slice(0, 1)):
            raise WireError(f"message of {count:,} latents in {len(layers[0])} bytes, which cannot hold so many")

    def decode(self, layers: Sequence[bytes], count: int, d_z: int) -> Array:
        book = self._book(d_z)
        parts = _parts(book)
        self.check(layers, count)
        if not 0 < len(layers) <= len(parts):
            raise WireError(f"message of {len(layers)} layers; the codebook has {len(parts)}")
        codes = np.empty((count, 0), np.int32)
        for data, part in zip(layers, parts, strict=False):
            codes = decode_columns(data, codes, book.columns[part], _least(count, part))
        return self._latents(book, codes)

    def quantized(self, z: Array, layers: int | None = None) -> Array:
        """Latents (M, d_z) as they would arrive in the first so many layers of a message (None: all)."""
        book = self._book(z.shape[1])
        columns = book.layers[(layers or len(book.layers)) - 1]
        return self._latents(book, self.codes(book, self.rotated(z))[:, :columns])

    def rotated(self, z: Array) -> Array:
        """Latents in the codebook's rotation (M, k); WireError where they are too large for it."""
        book = self._book(z.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):
            y = np.asarray((z - book.mean) @ book.into, np.float32)
        if not np.isfinite(y).all():
            raise WireError(f"codec {self.name!r}: latents are too large for codebook {book.id.hex()}")
        return y

    def _latents(self, book: Codebook, codes: Codes) -> Array:
        return np.asarray(book.mean + self.vectors(book, codes) @ book.back, np.float32)

    @abstractmethod
    def codes(self, book: Codebook, y: Array) -> Codes:
        """Codes (M, C) of rotated latents (M, k). In a column that refines another one it is the cell that stands here,
        of which only cell % size is written: the column that is refined has told the rest."""

    @abstractmethod
    def vectors(self, book: Codebook, codes: Codes) -> Array:
        """Rotated latents (M, k) from the codes (M, c) of the first c columns."""

    def _book(self, d_z: int) -> Codebook:
        """The codebook, for latents of this width."""
        book = recall(self.named) if self.book is None and self.named is not None else self.book
        if book is None and self.named is not None:
            raise WireError(f"the message needs codebook {self.named.hex()}, which is not known here")
        book = self.with_book(book).book
        assert book is not None
        if book.d_z != d_z:
            raise WireError(f"latents of width {d_z}, but codebook {book.id.hex()} is for {book.d_z}")
        return book

    def __str__(self) -> str:
        return f"{self.name}:layers={self.layers}" if self.layers else self.name


def _least(count: int, part: slice) -> int:
    """Bytes of a payload layer at least: those of the first one."""
    return 0 if part.start else -(-count // LATENTS_A_BYTE)


def _parts(book: Codebook) -> list[slice]:
    """The columns of each payload layer."""
    return [slice(a, b) for a, b in zip([0, *book.layers], book.layers, strict=False)]
