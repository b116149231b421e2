"""One sentence embedding, spread over the latents.

The embedding is the mean of a frozen pretrained model's last hidden states (Sentence-BERT, Reimers & Gurevych 2019,
arXiv 1908.10084). It is one vector for the whole text, so what a message can say is bounded by it, however many latents
there are: a baseline for the other encoders.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentwire.backbone.text_model import TextModel
from latentwire.config.schema import Config
from latentwire.encoder.base import rms_normalised
from latentwire.encoder.queries import LatentHead, TextModelEncoder, bank_of
from latentwire.encoder.text import SenderText


class SimpleSTEncoder(TextModelEncoder):
    """A sentence embedding (hidden_size,) to latents (M, d_z): each query's offset is added to it, then an MLP."""

    def __init__(self, model: TextModel, config: Config):
        super().__init__(model)
        section = config.queries
        self.sentence = nn.Linear(model.hidden_size, section.width)
        self.queries = bank_of(config)
        self.mlp = nn.Sequential(nn.GELU(), nn.Linear(section.width, section.width), nn.GELU())
        self.head = LatentHead(config)

    def features(self, texts: Sequence[SenderText]) -> list[Tensor]:
        """The RMS-normalised mean of the last hidden states of each text's own tokens: (hidden_size,), fp32."""
        return [rms_normalised(states.mean(0)) for states in self.model.states([t.ids for t in texts])]

    def forward(self, features: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        sentences = self.sentence(self.inputs(torch.stack(list(features))))
        return self.head(self.mlp(sentences[:, None] + self.queries[: max(counts)]))

    def centre(self, features: Sequence[Tensor]) -> None:
        self.inputs.fit(torch.stack(list(features)))
