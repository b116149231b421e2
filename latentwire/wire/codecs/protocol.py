"""What a codec is."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Codec(Protocol):
    """Latents (M, d_z) to bytes of a length known beforehand, and back."""

    id: int

    def size(self, latents: int, d_z: int) -> int:
        """Bytes of the payload."""

    def encode(self, z: Tensor) -> bytes: ...

    def decode(self, payload: bytes, latents: int, d_z: int) -> Tensor: ...
