"""Window features of a pretrained LM, then one linear map.

Pooling contiguous windows of a pretrained LM's hidden states, rather than learned queries, follows ARC-Encoder
(arXiv 2510.20535). A window's features are the RMS-normalised hidden states of its tokens, or of those that are hardest
to predict (`encoder.keep`), at several depths, concatenated; the map to d_z comes from the closed-form fit and is then
trained on answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentwire.backbone.lm import LanguageModel, pad_right
from latentwire.config.schema import Config
from latentwire.core.errors import ModelError
from latentwire.encoder.base import Encoder, rms_normalised, too_many_tokens
from latentwire.encoder.text import SenderText, stack_phases
from latentwire.encoder.windows import most_surprising


class BackboneEncoder(Encoder):
    """Window features (M, phases * len(layers) * hidden_size) to latents (M, d_z)."""

    from_scratch = False
    mean: Tensor

    def __init__(self, lm: LanguageModel, config: Config):
        super().__init__()
        self.layers = config.encoder.layers
        deepest = max(self.layers)
        if deepest > lm.anatomy.layers:
            raise ModelError(f"encoder.layers: {deepest} is more than the {lm.anatomy.layers} layers of {lm.name!r}")
        self.keep = config.encoder.keep
        if self.keep is None:  # else the whole model is needed, to tell what is hard to predict
            lm.truncate(deepest)
        self.lm = self.source = lm
        self.device = lm.device
        self.phases = config.encoder.read
        self.d_features = self.phases * len(self.layers) * lm.anatomy.hidden_size
        self.weight = nn.Parameter(torch.randn(self.d_features, config.encoder.d_z) / self.d_features**0.5)
        self.register_buffer("mean", torch.zeros(self.d_features))

    @classmethod
    def load(cls, config: Config, device: str) -> BackboneEncoder:
        lm = LanguageModel.load(
            config.encoder.model,
            dtype=config.model.dtype,
            attn_implementation=config.model.attn_implementation,
            device=device,
        )
        return cls(lm, config)

    def too_long(self, text: SenderText) -> str | None:
        return too_many_tokens(text, self.lm.anatomy.max_positions)

    @torch.no_grad()
    def features(self, texts: Sequence[SenderText]) -> list[Tensor]:
        """Window features of each text: (M_i, d_features), fp32. Every text is read behind the sender's BOS."""
        ids, mask = pad_right([t.ids for t in texts], self.lm.pad_id, self.device)
        with self.lm.outputs_of(self.layers) as seen:
            final = self.lm.final_states(ids, mask)
        states = rms_normalised(torch.stack([seen[k] for k in self.layers], 2).float())
        if self.keep is not None and len(texts) == 1:
            texts[0].remember(self._chosen(texts[0], ids, final))
        phase_tokens, counts = stack_phases([t.chosen or t.phase_tokens for t in texts], self.device)
        batch, phases, windows = phase_tokens.shape
        index = phase_tokens.transpose(1, 2).reshape(batch, windows * phases)
        rows = torch.arange(batch, device=ids.device)[:, None]
        features = states[rows, index].reshape(batch, windows, self.d_features)
        return [row[:count] for row, count in zip(features, counts.tolist(), strict=True)]

    @torch.no_grad()
    def choose(self, text: SenderText) -> list[list[int]]:
        ids, mask = pad_right([text.ids], self.lm.pad_id, self.device)
        return self._chosen(text, ids, self.lm.final_states(ids, mask))

    def _chosen(self, text: SenderText, ids: Tensor, final: Tensor) -> list[list[int]]:
        surprisal = self.lm.surprisal(final[0], ids[0]).tolist()
        return most_surprising(text.phase_tokens, surprisal, self.phases)

    def forward(self, features: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        """One row of features becomes one latent."""
        rows = torch.cat(list(features)).float()
        z = (rows - self.mean) @ self.weight  # one product: its gradient is as large as the encoder itself
        return nn.utils.rnn.pad_sequence(list(z.split(list(counts))), batch_first=True)
