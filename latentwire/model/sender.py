"""The sender: text to latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentwire.backbone.lm import LanguageModel, pad_right
from latentwire.config.schema import Config
from latentwire.core.errors import ModelError
from latentwire.diagnostics.tensors import hand_over
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.model.encoding import SenderText, encode_for_sender, stack_phases


class Sender:
    """A frozen LM under an encoder. One encoding of a text serves all receivers and all questions."""

    def __init__(self, lm: LanguageModel, config: Config):
        self.config = config.encoder
        deepest = max(self.config.layers)
        if deepest > lm.anatomy.layers:
            raise ModelError(f"encoder.layers: {deepest} is more than the {lm.anatomy.layers} layers of {lm.name!r}")
        self.encoder = BackboneEncoder(lm, self.config.layers, self.config.window, self.config.d_z).to(lm.device)

    @property
    def lm(self) -> LanguageModel:
        return self.encoder.lm

    def tokenize(self, text: str) -> SenderText:
        """A text of any length as token ids and windows."""
        return encode_for_sender(self.lm, text, self.config.window, self.config.latent_len)

    def prepare(self, text: str) -> SenderText:
        """Tokenize a text and cut it into windows; ModelError where it is longer than the sender can read."""
        prepared = self.tokenize(text)
        if len(prepared.ids) > self.lm.anatomy.max_positions:
            raise ModelError(
                f"encoder.model: a text of {len(prepared.ids)} tokens is longer than the sender's window of "
                f"{self.lm.anatomy.max_positions}"
            )
        return prepared

    @torch.no_grad()
    def features(self, texts: Sequence[SenderText]) -> list[Tensor]:
        """Window features of each text: (M_i, d_features), fp32."""
        ids, mask = pad_right([t.ids for t in texts], self.lm.pad_id, self.lm.device)
        phase_tokens, counts = stack_phases([t.phase_tokens for t in texts], self.lm.device)
        features = self.encoder.features(ids, mask, phase_tokens)
        return [row[:count] for row, count in zip(features, counts.tolist(), strict=True)]

    def latents(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Latents of texts given by their features: (batch, M, d_z) right-padded, and counts (batch,)."""
        counts, rows = [len(f) for f in features], torch.cat(list(features))
        hand_over("features", rows)
        z = self.encoder(rows)  # one product: its gradient is as large as the encoder itself
        rows = torch.nn.utils.rnn.pad_sequence(z.split(counts), batch_first=True)
        hand_over("z", rows)
        return rows, torch.tensor(counts, device=self.lm.device)
