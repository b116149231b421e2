"""Calibration: what sets the size of the vectors that an embedding reader puts at a receiver's input."""

from __future__ import annotations

import torch
from torch import Tensor

from latentwire.backbone.lm import LanguageModel


@torch.no_grad()
def embedding_rms(lm: LanguageModel, rows: int = 8192) -> float:
    """Root mean square of the receiver's token embeddings, as its first layer sees them (first `rows` tokens)."""
    vocabulary = lm.model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(min(rows, vocabulary), device=lm.device)
    return float(lm.embed(ids).float().pow(2).mean().sqrt())


def set_rms(vectors: Tensor, rms: Tensor) -> Tensor:
    """Scale vectors (..., d) so that each has the given root mean square."""
    return vectors * (rms * torch.rsqrt(vectors.pow(2).mean(-1, keepdim=True) + 1e-8))
