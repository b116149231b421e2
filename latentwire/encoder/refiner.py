"""The latent refiner (features.use_latent_refiner): a small transformer over the latents of a message.

It stands behind the encoder, before the wire, so that every receiver profits from it. Its only way out is a gate that
starts at zero (ReZero, Bachlechner et al. 2020, arXiv 2003.04887): at first it changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentwire.config.schema import Config
from latentwire.encoder.queries import sinusoids
from latentwire.encoder.text import row_mask


class LatentRefiner(nn.Module):
    """z + gate * out(transformer(in(z) + place)): latents (batch, M, d_z) to latents, each seeing its whole message."""

    def __init__(self, config: Config):
        super().__init__()
        section, d_z = config.latent_refiner, config.encoder.d_z
        self.inner = nn.Linear(d_z, section.width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                section.width,
                section.heads,
                section.ff,
                dropout=section.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(section.layers)
        )
        self.outer = nn.Sequential(nn.LayerNorm(section.width), nn.Linear(section.width, d_z))
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor, counts: Sequence[int]) -> Tensor:
        """z: (batch, M, d_z) right-padded, counts[i] latents in row i. Dropout works where gradients are on."""
        self.train(torch.is_grad_enabled())
        states = self.inner(z)
        states = states + sinusoids(torch.arange(z.shape[1], device=z.device), states.shape[-1])
        padding = ~row_mask(counts, z.device)
        for block in self.blocks:
            states = block(states, src_key_padding_mask=padding)
        return z + self.gate * self.outer(states)
