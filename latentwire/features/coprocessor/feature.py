"""Keys and values made by a small network from the latents."""

from __future__ import annotations

import torch
from torch import nn

from latentwire.backbone.context import Context
from latentwire.backbone.lm import LanguageModel
from latentwire.config.schema import Config
from latentwire.encoder.blocks import query_block, query_blocks
from latentwire.features.base import ReadingFeature
from latentwire.features.prefix import starting_slots


class Coprocessor(ReadingFeature):
    """`coprocessor.len` learned queries attend to the latents; what they find becomes slots behind the message.

    The last layer's weight starts at zero and its bias at the model's own keys and values of some words.
    """

    def __init__(self, config: Config, lm: LanguageModel):
        super().__init__()
        section = config.coprocessor
        self.positions = section.len
        self.shape = lm.anatomy.slot_shape
        self.queries = nn.Parameter(torch.randn(section.len, section.width) / section.width**0.5)
        self.memory = nn.Linear(config.encoder.d_z, section.width)
        self.blocks = nn.TransformerDecoder(query_block(section.width, section.heads), section.layers)
        self.blocks.layers = query_blocks(section.width, section.heads, section.layers)  # not copies of one
        self.out = nn.Linear(section.width, lm.anatomy.slot_size, bias=False)
        nn.init.zeros_(self.out.weight)
        self.start = nn.Parameter(starting_slots(lm, section.len))

    def extend(self, lm: LanguageModel, context: Context) -> Context:
        latents, mask = context.latents, context.latent_mask
        assert latents is not None and mask is not None
        queries = self.queries.expand(len(latents), *self.queries.shape)
        found = self.blocks(queries, self.memory(latents.float()), memory_key_padding_mask=~mask)
        return lm.append(context, self.start + self.out(found).unflatten(-1, self.shape))
