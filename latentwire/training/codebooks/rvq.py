"""Codewords for residual vector quantisation."""

from __future__ import annotations

import torch
from torch import Tensor
from vector_quantize_pytorch import ResidualVQ

from latentwire.config.sections.latents import CodecConfig
from latentwire.training.codebooks.columns import Columns, evenly

BATCH = 2048
"""Latents of a step of k-means."""


def rvq_columns(config: CodecConfig) -> int:
    """Codebooks of residual vector quantisation, each with an index of `index_bits` of all `bits`."""
    return max(1, round(config.bits / config.index_bits))


def fit_rvq(y: Tensor, config: CodecConfig) -> Columns:
    """Codewords of width k = y's.

    k-means one codebook after the other, by exponential moving averages, with codewords that nothing is near moved to
    where there is something (van den Oord et al., arXiv 1711.00937; Dhariwal et al., arXiv 2005.00341).
    """
    columns = rvq_columns(config)
    size, batch = min(1 << config.index_bits, len(y)), min(BATCH, len(y))
    vq = ResidualVQ(
        dim=y.shape[1],
        num_quantizers=columns,
        codebook_size=size,
        kmeans_init=True,
        decay=0.9,
        threshold_ema_dead_code=min(2.0, 0.25 * batch / size),  # of a batch, a quarter of what is a codeword's due
    ).train()
    with torch.no_grad():
        for _ in range(config.epochs):
            for rows in torch.randperm(len(y)).split(batch):
                if len(rows) == batch:
                    vq(y[None, rows])
    words = [layer._codebook.embed[0].clone() for layer in vq.layers]
    return Columns(words, evenly(columns, config.layers))
