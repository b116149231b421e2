"""Latents as they are, in 32 or 16 bits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class FloatCodec:
    """Little-endian IEEE floats, row by row."""

    def __init__(self, id: int, kind: str):
        self.id = id
        self.kind = np.dtype(kind)

    def size(self, latents: int, d_z: int) -> int:
        return latents * d_z * self.kind.itemsize

    def encode(self, z: Tensor) -> bytes:
        limit = float(np.finfo(self.kind).max)
        return z.detach().cpu().float().clamp(-limit, limit).numpy().astype(self.kind).tobytes()

    def decode(self, payload: bytes, latents: int, d_z: int) -> Tensor:
        return torch.from_numpy(np.frombuffer(payload, self.kind).astype(np.float32)).view(latents, d_z)
