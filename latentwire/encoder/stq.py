"""A token encoder read by learned queries.

The hidden states of a frozen pretrained model, whether an encoder such as BERT or a causal LM, are what the queries
attend to: the resampler of Flamingo (Alayrac et al. 2022, arXiv 2204.14198), for text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentwire.backbone.text_model import TextModel
from latentwire.config.schema import Config
from latentwire.encoder.base import rms_normalised
from latentwire.encoder.queries import LatentHead, QueryPooler, TextModelEncoder
from latentwire.encoder.text import SenderText


class STQEncoder(TextModelEncoder):
    """Last hidden states (T, hidden_size) to latents (M, d_z)."""

    def __init__(self, model: TextModel, config: Config):
        super().__init__(model)
        self.pooler = QueryPooler(model.hidden_size, config)
        self.head = LatentHead(config)

    def features(self, texts: Sequence[SenderText]) -> list[Tensor]:
        """RMS-normalised last hidden states of each text's own tokens: (T_i, hidden_size), fp32."""
        return [rms_normalised(states) for states in self.model.states([t.ids for t in texts])]

    def forward(self, features: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        states = self.inputs(nn.utils.rnn.pad_sequence(list(features), batch_first=True))
        return self.head(self.pooler(states, [len(f) for f in features], counts))

    def centre(self, features: Sequence[Tensor]) -> None:
        self.inputs.fit(torch.cat(list(features)))
