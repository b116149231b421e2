"""A small transformer over the bytes of a text, read by learned queries.

Bytes need no vocabulary and no pretrained model (ByT5, Xue et al. 2021, arXiv 2105.13626): any text in any language can
be sent, at the price of learning to read from nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentwire.backbone.text_model import TextTokenizer
from latentwire.config.schema import Config
from latentwire.encoder.blocks import contextualize, self_blocks
from latentwire.encoder.queries import LatentHead, QueryEncoder, QueryPooler
from latentwire.encoder.text import SenderText


class ByteEncoder(QueryEncoder):
    """UTF-8 bytes (T,) to latents (M, d_z). The tokenizer of encoder.model only counts tokens and finds windows."""

    def __init__(self, source: TextTokenizer, config: Config, device: torch.device | str = "cpu"):
        super().__init__()
        width, section = config.queries.width, config.byte
        self.source = source
        self.device = torch.device(device)
        self.max_len = section.max_len
        self.embedding = nn.Embedding(256, width)
        self.blocks = self_blocks(width, config.queries.heads, 2 * width, section.layers)
        self.norm = nn.LayerNorm(width)
        self.pooler = QueryPooler(width, config)
        self.head = LatentHead(config)

    @classmethod
    def load(cls, config: Config, device: str) -> ByteEncoder:
        return cls(TextTokenizer.load(config.encoder.model), config, device)

    def too_long(self, text: SenderText) -> str | None:
        length = len(text.text.encode())
        if length > self.max_len:
            return f"byte.max_len: a text of {length} bytes is longer than {self.max_len}"
        return self.too_many_latents(text)

    def features(self, texts: Sequence[SenderText]) -> list[Tensor]:
        """The bytes of each text: (T_i,)."""
        return [torch.tensor(list(t.text.encode()), dtype=torch.uint8, device=self.device) for t in texts]

    def forward(self, features: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        lengths = [len(f) for f in features]
        states = self.embedding(nn.utils.rnn.pad_sequence(list(features), batch_first=True).long())
        return self.head(self.pooler(self.norm(contextualize(self.blocks, states, lengths)), lengths, counts))
