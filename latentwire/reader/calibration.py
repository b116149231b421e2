"""Calibration: what sets the size of the vectors that an embedding reader puts at a receiver's input."""

from __future__ import annotations

import torch
from torch import Tensor

from latentwire.backbone.lm import LanguageModel

SAMPLE = 8192
"""Tokens whose embeddings stand for all of the vocabulary."""


@torch.no_grad()
def sample_embeddings(lm: LanguageModel) -> Tensor:
    """The receiver's first token embeddings, as its first layer sees them: (at most SAMPLE, hidden_size), fp32."""
    vocabulary = lm.model.get_input_embeddings().weight.shape[0]
    return lm.embed(torch.arange(min(SAMPLE, vocabulary), device=lm.device)).float()


def embedding_rms(lm: LanguageModel) -> float:
    """Root mean square of the receiver's token embeddings."""
    return float(sample_embeddings(lm).pow(2).mean().sqrt())


def set_rms(vectors: Tensor, rms: Tensor) -> Tensor:
    """Scale vectors (..., d) so that each has the given root mean square."""
    return vectors * (rms * torch.rsqrt(vectors.pow(2).mean(-1, keepdim=True) + 1e-8))
