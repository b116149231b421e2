"""The latent refiner (features.use_latent_refiner): a small transformer over the latents of a message.

It stands behind the encoder, before the wire, so that every receiver profits from it. What it adds goes through a layer
that starts at zero (as the last layer of an adapter, Houlsby et al. 2019, arXiv 1902.00751, or of LoRA): at first it
changes nothing, and the first gradient says what to change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentwire.config.schema import Config
from latentwire.encoder.blocks import contextualize, self_blocks


class LatentRefiner(nn.Module):
    """z + out(transformer(in(z) + place)): latents (batch, M, d_z) to latents, each seeing its whole message."""

    def __init__(self, config: Config):
        super().__init__()
        section, d_z = config.latent_refiner, config.encoder.d_z
        self.inner = nn.Linear(d_z, section.width)
        self.blocks = self_blocks(section.width, section.heads, section.ff, section.layers, section.dropout)
        self.norm = nn.LayerNorm(section.width)
        self.outer = nn.Linear(section.width, d_z)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, z: Tensor, counts: Sequence[int]) -> Tensor:
        """z: (batch, M, d_z) right-padded, counts[i] latents in row i. Dropout works where gradients are on."""
        self.train(torch.is_grad_enabled())
        return z + self.outer(self.norm(contextualize(self.blocks, self.inner(z), counts)))
