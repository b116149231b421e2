"""The small transformers of encoders and features, all with norms in front (Xiong et al. 2020, arXiv 2002.04745)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentwire.backbone.padding import row_mask


def self_blocks(width: int, heads: int, ff: int, layers: int, dropout: float = 0.0) -> nn.ModuleList:
    """Layers in which the vectors of a row see each other; `contextualize` runs them."""
    return nn.ModuleList(
        nn.TransformerEncoderLayer(
            width, heads, ff, dropout=dropout, activation="gelu", batch_first=True, norm_first=True
        )
        for _ in range(layers)
    )


def contextualize(blocks: nn.ModuleList, states: Tensor, counts: Sequence[int]) -> Tensor:
    """What `self_blocks` make of states (batch, T, width), right-padded, counts[i] of them in row i, which also learn
    where they stand."""
    length, width = states.shape[1:]
    states = states + sinusoids(torch.arange(length, device=states.device), width)
    padding = ~row_mask(counts, length, states.device)
    for block in blocks:
        states = block(states, src_key_padding_mask=padding)
    return states


def query_block(width: int, heads: int) -> nn.TransformerDecoderLayer:
    """Queries (batch, n, width) look at each other, then at a memory (batch, m, width); norms stand in front."""
    return nn.TransformerDecoderLayer(
        width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )


def query_blocks(width: int, heads: int, layers: int) -> nn.ModuleList:
    """Several of them, each with weights of its own from the start."""
    return nn.ModuleList(query_block(width, heads) for _ in range(layers))


def sinusoids(places: Tensor, width: int) -> Tensor:
    """Sine and cosine codes of places (...,): (..., width) (Vaswani et al. 2017, arXiv 1706.03762)."""
    half = -(-width // 2)
    rates = 10_000.0 ** (-torch.arange(half, device=places.device) / half)
    angles = places[..., None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], -1)[..., :width]
