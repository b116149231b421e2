"""Learned queries: how the encoders byte, simple-st and stq make M latents of a text.

A bank of learned queries reads a text's states by cross-attention, as in the Perceiver (Jaegle et al. 2021, arXiv
2103.03206) and the Q-Former of BLIP-2 (Li et al. 2023, arXiv 2301.12597).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentwire.config.schema import Config, QueriesConfig
from latentwire.encoder.text import real


class Queries(nn.Module):
    """A bank of learned vectors, one for each latent that a message may have."""

    def __init__(self, config: Config):
        super().__init__()
        bank = config.latent_layout.total or config.queries.bank
        self.vectors = nn.Parameter(torch.randn(bank, config.queries.width) / config.queries.width**0.5)

    def too_many(self, latents: int) -> str | None:
        """The refusal of a text that takes more latents than there are queries."""
        if latents <= len(self.vectors):
            return None
        return f"queries.bank: a text of {latents} latents has more than the {len(self.vectors)} queries that there are"

    def forward(self, counts: Sequence[int]) -> Tensor:
        """The first of them, as many as the longest row has latents: (M, width)."""
        return self.vectors[: max(counts)]


class QueryPooler(nn.Module):
    """States of texts (batch, T, d_memory) to latents (batch, M, d_z).

    The i-th of M queries is told the place in the text for which it stands, (i + 0.5) / M * T, in the same code as the
    states are told theirs: a receiver will read its latent where the i-th window would be.
    """

    def __init__(self, d_memory: int, config: Config):
        super().__init__()
        section = config.queries
        self.queries = Queries(config)
        self.memory = nn.Linear(d_memory, section.width)
        self.blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(
                section.width,
                section.heads,
                2 * section.width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(section.layers)
        )
        self.out = to_latents(section, config.encoder.d_z)

    def forward(self, states: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> Tensor:
        """states: right-padded, lengths[i] of them in row i; counts: latents of each row."""
        memory = self.memory(states)
        memory = memory + sinusoids(torch.arange(max(lengths), device=memory.device), memory.shape[-1])
        places = torch.arange(max(counts), device=memory.device) + 0.5
        places = places * (torch.tensor(lengths) / torch.tensor(counts)).to(memory.device)[:, None]
        found = self.queries(counts) + sinusoids(places, memory.shape[-1])
        unused, padding = ~real(counts, memory.device), ~real(lengths, memory.device)
        for block in self.blocks:
            found = block(found, memory, tgt_key_padding_mask=unused, memory_key_padding_mask=padding)
        return self.out(found)


def to_latents(section: QueriesConfig, d_z: int) -> nn.Module:
    """The last step to latents, which gives them about unit variance: what generators are made for."""
    linear = nn.Linear(section.width, d_z)
    nn.init.normal_(linear.weight, std=section.width**-0.5)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.LayerNorm(section.width), linear)


def sinusoids(places: Tensor, width: int) -> Tensor:
    """Sine and cosine codes of places (...,): (..., width) (Vaswani et al. 2017, arXiv 1706.03762)."""
    half = -(-width // 2)
    rates = 10_000.0 ** (-torch.arange(half, device=places.device) / half)
    angles = places[..., None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], -1)[..., :width]
