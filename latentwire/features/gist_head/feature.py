"""Learned queries rebuild masked prompt embeddings from the latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentwire.backbone.context import Context
from latentwire.backbone.lm import LanguageModel
from latentwire.backbone.padding import pad_right
from latentwire.config.schema import Config
from latentwire.encoder.blocks import query_block
from latentwire.features.base import ReadingFeature


class GistHead(ReadingFeature):
    """One query a position of the text's first `gist_head.target_len` tokens, cross-attending to the latents.

    A share `gist_head.mask_ratio` of the positions is masked, drawn anew each step; the others' embeddings are shown
    to their queries, so that the head may lean on neighbours. The loss is the squared error at masked positions as a
    share of the embeddings' mean square; `gist_head.weight` is its weight.
    """

    train_only = True

    def __init__(self, config: Config, lm: LanguageModel):
        super().__init__()
        self.section = section = config.gist_head
        self.weight = section.weight
        size = lm.anatomy.hidden_size
        self.queries = nn.Parameter(torch.randn(section.target_len, section.width) / section.width**0.5)
        self.shown = nn.Linear(size, section.width, bias=False) if section.mask_ratio < 1.0 else None
        self.memory = nn.Linear(config.encoder.d_z, section.width)
        self.block = query_block(section.width, section.heads)
        self.out = nn.Linear(section.width, size)

    def loss(self, lm: LanguageModel, context: Context, texts: Sequence[Sequence[int]]) -> Tensor:
        latents, latent_mask = context.latents, context.latent_mask
        assert latents is not None and latent_mask is not None
        ids, real = pad_right([row[: self.section.target_len] for row in texts], lm.pad_id, latents.device)
        with torch.no_grad():
            truth = lm.embed(ids).float()  # (batch, tokens, hidden_size)
        drawn = torch.rand(ids.shape, device=ids.device).masked_fill(~real, torch.inf)
        hidden = (drawn < self.section.mask_ratio) | (drawn == drawn.amin(1, keepdim=True))  # at least one a text
        queries = self.queries[: ids.shape[1]].expand(*ids.shape, -1)
        if self.shown is not None:
            queries = queries + self.shown(truth * ~hidden[..., None])
        found = self.block(
            queries,
            self.memory(latents.float()),
            tgt_key_padding_mask=~real,
            memory_key_padding_mask=~latent_mask,
        )
        error = (self.out(found)[hidden] - truth[hidden]).pow(2).mean()
        return error / truth[hidden].pow(2).mean()
