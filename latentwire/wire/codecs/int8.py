"""Latents in 8 bits, with one fp16 scale a latent (absmax quantisation, as in LLM.int8, arXiv 2208.07339)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Int8Codec:
    """M fp16 scales, then M x d_z signed bytes; value = byte * scale."""

    def __init__(self, id: int):
        self.id = id

    def size(self, latents: int, d_z: int) -> int:
        return latents * (2 + d_z)

    def encode(self, z: Tensor) -> bytes:
        z = z.detach().cpu().float()
        scale = (z.abs().amax(1, keepdim=True) / 127).clamp(1e-7, 60000).half()
        levels = (z / scale.float()).round().clamp(-127, 127).to(torch.int8)
        return scale.numpy().astype("<f2").tobytes() + levels.numpy().tobytes()

    def decode(self, payload: bytes, latents: int, d_z: int) -> Tensor:
        scale = np.frombuffer(payload, "<f2", latents).astype(np.float32).reshape(latents, 1)
        levels = np.frombuffer(payload, np.int8, latents * d_z, offset=2 * latents).reshape(latents, d_z)
        return torch.from_numpy(levels.astype(np.float32) * scale)
