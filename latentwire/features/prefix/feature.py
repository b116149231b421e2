"""Learned keys and values behind the message."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentwire.backbone.context import Context
from latentwire.backbone.lm import LanguageModel
from latentwire.config.schema import Config
from latentwire.features.base import ReadingFeature

START = "\nAnswer the question with a few words from the text above."
"""Real words to start from, as Li & Liang advise."""


@torch.no_grad()
def starting_slots(lm: LanguageModel, length: int) -> Tensor:
    """The model's own keys and values of START, repeated to a length: (length, layers, kv_heads, 2, head_dim), fp32."""
    ids = lm.tokenizer(START, add_special_tokens=False)["input_ids"]
    return lm.own_slots((ids * -(-length // len(ids)))[:length]).float()


class Prefix(ReadingFeature):
    """`prefix.len` slots, free or (with `prefix.projection`) made by an MLP from a smaller embedding each.

    The MLP's last layer starts at zero, so that both forms start from the same slots.
    """

    start: Tensor

    def __init__(self, config: Config, lm: LanguageModel):
        super().__init__()
        section = config.prefix
        self.positions = section.len
        start = starting_slots(lm, section.len)
        self.projection: nn.Module | None = None
        if section.projection:
            self.register_buffer("start", start)
            self.embedding = nn.Parameter(torch.randn(section.len, section.hidden))
            out = nn.Linear(section.hidden, lm.anatomy.slot_size)
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)
            self.projection = nn.Sequential(nn.Linear(section.hidden, section.hidden), nn.Tanh(), out)
        else:
            self.slots = nn.Parameter(start)

    def extend(self, lm: LanguageModel, context: Context) -> Context:
        if self.projection is None:
            slots = self.slots
        else:
            slots = self.start + self.projection(self.embedding).view_as(self.start)
        return lm.append(context, slots.expand(len(context.mask), *slots.shape))
