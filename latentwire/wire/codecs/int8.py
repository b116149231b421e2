"""Latents in 8 bits, with one fp16 scale a latent (absmax quantisation, as in LLM.int8, arXiv 2208.07339)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 levels (..., n) and fp16 scales (..., 1) of rows (..., n): the largest magnitude of a row becomes 127."""
    rows = rows.detach().cpu().float()
    scale = (rows.abs().amax(-1, keepdim=True) / 127).clamp(1e-7, 60000).half()
    return (rows / scale.float()).round().clamp(-127, 127).to(torch.int8), scale


class Int8Codec:
    """M fp16 scales, then M x d_z signed bytes; value = byte * scale."""

    def __init__(self, id: int):
        self.id = id

    def size(self, latents: int, d_z: int) -> int:
        return latents * (2 + d_z)

    def encode(self, z: Tensor) -> bytes:
        levels, scale = quantize_rows(z)
        return scale.numpy().astype("<f2").tobytes() + levels.numpy().tobytes()

    def decode(self, payload: bytes, latents: int, d_z: int) -> Tensor:
        scale = np.frombuffer(payload, "<f2", latents).astype(np.float32).reshape(latents, 1)
        levels = np.frombuffer(payload, np.int8, latents * d_z, offset=2 * latents).reshape(latents, d_z)
        return torch.from_numpy(levels.astype(np.float32) * scale)
