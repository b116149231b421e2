"""A message: latents of one text, with the codec that puts them into bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.core.errors import WireError
from latentwire.wire import header
from latentwire.wire.codecs import CODECS


@dataclass(frozen=True)
class Wire:
    """Latents (M, d_z) of one text, fp32, and the name of a codec."""

    latents: Tensor
    codec: str = "fp16"

    def to_bytes(self) -> bytes:
        """The whole message, header included."""
        if not torch.isfinite(self.latents).all():
            raise WireError("latents hold NaN or inf")
        codec = CODECS[self.codec]
        latents, d_z = self.latents.shape
        return header.pack(codec.id, latents, d_z, codec.encode(self.latents))

    @classmethod
    def from_bytes(cls, data: bytes) -> Wire:
        """Parse a message; WireError where it is damaged, unknown or holds NaN or inf."""
        codec_id, latents, d_z, payload = header.unpack(data)
        names = {codec.id: name for name, codec in CODECS.items()}
        if codec_id not in names:
            raise WireError(f"message with unknown codec {codec_id}")
        codec = CODECS[names[codec_id]]
        if len(payload) != codec.size(latents, d_z):
            raise WireError(f"message payload has {len(payload)} bytes, not {codec.size(latents, d_z)}")
        z = codec.decode(payload, latents, d_z)
        if not torch.isfinite(z).all():
            raise WireError("message holds NaN or inf")
        return cls(z, names[codec_id])
