"""Learned queries: how the encoders byte, simple-st and stq make M latents of a text.

A bank of learned queries reads a text's states by cross-attention, as in the Perceiver (Jaegle et al. 2021, arXiv
2103.03206) and the Q-Former of BLIP-2 (Li et al. 2023, arXiv 2301.12597).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from latentwire.backbone.padding import row_mask
from latentwire.backbone.text_model import TextModel
from latentwire.config.schema import Config
from latentwire.encoder.base import Encoder, too_many_tokens
from latentwire.encoder.blocks import query_blocks
from latentwire.encoder.text import SenderText


def bank_size(config: Config) -> int:
    """The most latents that a message may have."""
    return config.latent_layout.total or config.queries.bank


def bank_of(config: Config) -> nn.Parameter:
    """Learned queries, one for each latent that a message may have: (bank, width)."""
    return nn.Parameter(torch.randn(bank_size(config), config.queries.width) * 0.02)


class QueryEncoder(Encoder):
    """What encoders with learned queries have in common."""

    head: LatentHead

    def too_many_latents(self, text: SenderText) -> str | None:
        """The refusal of a text that takes more latents than there are queries."""
        if text.latents <= len(self.head.offset):
            return None
        bank = len(self.head.offset)
        return f"queries.bank: a text of {text.latents} latents has more than the {bank} queries that there are"

    def centre(self, features: Sequence[Tensor]) -> None:
        """Take up the statistics of features, where the encoder standardises them."""
        return

    @torch.no_grad()
    def standardise(self, features: Sequence[Tensor], counts: Sequence[int]) -> None:
        self.centre(features)
        self.head.standardise([self([one], [count])[0] for one, count in zip(features, counts, strict=True)])


class Standardiser(nn.Module):
    """(x - mean) / std, each of d dimensions for itself; mean and std are those of rows (n, d) that it was shown.

    States of a pretrained model have most of their size in common. What tells texts apart is the small rest.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def fit(self, rows: Tensor) -> None:
        """rows: (n, d)."""
        self.mean.copy_(rows.mean(0))
        self.std.copy_(rows.std(0, unbiased=False).clamp(min=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to (..., d), fp32."""
        return (x.float() - self.mean) / self.std


class TextModelEncoder(QueryEncoder):
    """What reads a frozen pretrained model's hidden states, standardised."""

    def __init__(self, model: TextModel):
        super().__init__()
        self.source = self.model = model
        self.device = model.device
        self.inputs = Standardiser(model.hidden_size)

    @classmethod
    def load(cls, config: Config, device: str) -> Self:
        model = TextModel.load(config.encoder.model, config.model, device)
        return cls(model, config)  # type: ignore[call-arg]  # which each is built by

    def too_long(self, text: SenderText) -> str | None:
        return too_many_tokens(text, self.model.max_positions) or self.too_many_latents(text)


class QueryPooler(nn.Module):
    """Learned queries that attend to texts' states (batch, T, d_memory): (batch, M, width).

    A receiver reads the i-th latent where the i-th of M windows would be, so the i-th query leans towards that window:
    attention falls with the distance from it, by a slope of its own in each head (ALiBi, Press et al. 2022, arXiv
    2108.12409). What lies further away stays within reach, above all for the last heads. Private latents stand behind
    the shared ones for every receiver, and their queries lean there.
    """

    def __init__(self, d_memory: int, config: Config):
        super().__init__()
        section = config.queries
        self.heads = section.heads
        self.layout = config.latent_layout
        self.queries = bank_of(config)
        self.memory = nn.Linear(d_memory, section.width)
        self.blocks = query_blocks(section.width, section.heads, section.layers)

    def forward(self, states: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> Tensor:
        """states: (batch, T, d_memory) right-padded, lengths[i] of them in row i; counts: latents of each row. Gives
        (batch, M, width)."""
        memory = self.memory(states)
        found = self.queries[: max(counts)].expand(len(counts), -1, -1)
        unused, bias = ~row_mask(counts, device=memory.device), self._bias(lengths, counts).to(memory.device)
        for block in self.blocks:
            found = block(found, memory, memory_mask=bias, tgt_key_padding_mask=unused)
        return found

    def _bias(self, lengths: Sequence[int], counts: Sequence[int]) -> Tensor:
        """What is added to the attention of each query to each state: (batch * heads, M, T)."""
        read = [self.layout.read_of(count) for count in counts]
        size = torch.tensor(lengths) / torch.tensor(read)  # states a window
        centres = (torch.tensor(self.layout.places(max(counts))) + 0.5) * size[:, None]
        distance = (centres[:, :, None] - torch.arange(max(lengths)) - 0.5).abs() / size[:, None, None]
        slopes = 4.0 * 2.0 ** -torch.arange(self.heads)
        bias = -slopes[:, None, None] * distance[:, None]
        return bias.masked_fill(~row_mask(lengths)[:, None, None], -torch.inf).flatten(0, 1)


class LatentHead(nn.Module):
    """The last step from queries (batch, M, width) to latents (batch, M, d_z): a linear map, and an offset a query."""

    def __init__(self, config: Config):
        super().__init__()
        width, d_z = config.queries.width, config.encoder.d_z
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, d_z, bias=False)
        nn.init.normal_(self.linear.weight, std=width**-0.5)
        self.offset = nn.Parameter(torch.zeros(bank_size(config), d_z))

    def forward(self, found: Tensor) -> Tensor:
        """(batch, M, width) to (batch, M, d_z)."""
        return self.linear(self.norm(found)) + self.offset[: found.shape[1]]

    @torch.no_grad()
    def standardise(self, latents: Sequence[Tensor]) -> None:
        """Give latents such as these (M_i, d_z) zero mean over texts, each query's for itself, and unit variance.

        What all texts have in common needs no sending; and generators are made for latents of unit variance.
        """
        z, mask = pad_sequence(list(latents), batch_first=True), row_mask([len(row) for row in latents])[..., None]
        mask = mask.to(z.device)
        mean = (z * mask).sum(0) / mask.sum(0)
        std = ((z - mean) * mask).pow(2).sum((0, 1)).div(mask.sum()).sqrt().clamp(min=1e-4)
        self.offset[: len(mean)].sub_(mean)
        self.offset.div_(std)
        self.linear.weight.div_(std[:, None])
