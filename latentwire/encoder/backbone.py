"""Window features of a pretrained LM, then one linear map.

Pooling contiguous windows of a pretrained LM's hidden states, rather than learned queries, follows ARC-Encoder
(arXiv 2510.20535). A window's features are the RMS-normalised hidden states of its tokens, or of those that are hardest
to predict (`encoder.keep`), at several depths, concatenated; the map to d_z comes from the closed-form fit and is then
trained on answers, and with it, where that is asked for, LoRA on the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from latentwire.backbone.lm import LanguageModel, pad_right
from latentwire.config.schema import Config
from latentwire.core.errors import ModelError
from latentwire.encoder.base import Encoder, rms_normalised, too_many_tokens
from latentwire.encoder.text import SenderText, row_mask, stack_phases
from latentwire.encoder.windows import most_surprising

TOGETHER = 64
"""Texts of one batch, where choices are made ahead."""


class BackboneEncoder(Encoder):
    """Window features (M, phases * len(layers) * hidden_size) to latents (M, d_z).

    `adapted` switches on what is trained of the model; without it the model is frozen. Which tokens are hardest to
    predict is for the untouched model to say.
    """

    from_scratch = False
    mean: Tensor

    def __init__(self, lm: LanguageModel, config: Config):
        super().__init__()
        self.layers = config.encoder.layers
        self.deepest = max(self.layers)
        if self.deepest > lm.anatomy.layers:
            raise ModelError(
                f"encoder.layers: {self.deepest} is more than the {lm.anatomy.layers} layers of {lm.name!r}"
            )
        self.keep = config.encoder.keep
        if self.keep is None:  # else the whole model is needed, to tell what is hard to predict
            lm.truncate(self.deepest)
        self.adapted: Callable[[], AbstractContextManager[None]] | None = None
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

    def features(self, texts: Sequence[SenderText]) -> list[Tensor]:
        """Window features of each text; for an adapted model what it is going to read, as its states will change: the
        T_i ids and behind them the places (M_i * phases) of the tokens in the windows, as one row of integers."""
        if self.adapted is None:
            return self.window_features(texts)
        rows = [text.ids + [i for window in zip(*_read(text), strict=True) for i in window] for text in texts]
        return [torch.tensor(row, device=self.device) for row in rows]

    @torch.no_grad()
    def window_features(self, texts: Sequence[SenderText]) -> list[Tensor]:
        """What the untouched model makes of each text: (M_i, d_features), fp32. It reads behind the sender's BOS."""
        ids, mask = pad_right([t.ids for t in texts], self.lm.pad_id, self.device)
        with self.lm.outputs_of(self.layers) as seen:
            final = self.lm.final_states(ids, mask)
        if self.keep is not None and len(texts) == 1:
            texts[0].remember(self._chosen(texts[0], ids, final))
        tables, counts = stack_phases([_read(text) for text in texts], self.device)
        return self._windows(seen, tables.transpose(1, 2).flatten(1), counts.tolist())

    def _windows(self, seen: dict[int, Tensor], places: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Window features (M_i, d_features) of layers' states (batch, T, hidden_size) at places (batch, M * phases)."""
        states = rms_normalised(torch.stack([seen[k] for k in self.layers], 2).float())
        rows = torch.arange(len(places), device=places.device)[:, None]
        features = states[rows, places].reshape(len(places), -1, self.d_features)
        return [row[:count] for row, count in zip(features, counts, strict=True)]

    @torch.no_grad()
    def choose(self, text: SenderText) -> list[list[int]]:
        ids, mask = pad_right([text.ids], self.lm.pad_id, self.device)
        return self._chosen(text, ids, self.lm.final_states(ids, mask))

    @torch.no_grad()
    def choose_ahead(self, texts: Sequence[SenderText]) -> None:
        if self.keep is None:
            return
        by_length = sorted(texts, key=lambda text: len(text.ids))
        for start in range(0, len(by_length), TOGETHER):
            batch = by_length[start : start + TOGETHER]
            ids, mask = pad_right([text.ids for text in batch], self.lm.pad_id, self.device)
            surprisal = self.lm.surprisal(self.lm.final_states(ids, mask), ids).tolist()
            for text, row in zip(batch, surprisal, strict=True):
                text.remember(most_surprising(text.phase_tokens, row, self.phases))

    def _chosen(self, text: SenderText, ids: Tensor, final: Tensor) -> list[list[int]]:
        surprisal = self.lm.surprisal(final[0], ids[0]).tolist()
        return most_surprising(text.phase_tokens, surprisal, self.phases)

    def forward(self, features: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        """One row of features becomes one latent."""
        if self.adapted is not None:
            features = self._adapted_features(features, counts, self.adapted)
        rows = torch.cat(list(features)).float()
        z = (rows - self.mean) @ self.weight  # one product: its gradient is as large as the encoder itself
        return nn.utils.rnn.pad_sequence(list(z.split(list(counts))), batch_first=True)

    def _adapted_features(
        self, read: Sequence[Tensor], counts: Sequence[int], adapted: Callable[[], AbstractContextManager[None]]
    ) -> list[Tensor]:
        """`window_features` with gradients, of texts given by their ids and the places that are read."""
        sizes = [count * self.phases for count in counts]
        own = [row[: len(row) - size] for row, size in zip(read, sizes, strict=True)]
        places = [row[len(row) - size :] for row, size in zip(read, sizes, strict=True)]
        ids = nn.utils.rnn.pad_sequence(own, batch_first=True, padding_value=self.lm.pad_id)
        mask = row_mask([len(row) for row in own], self.device)
        with adapted(), self.lm.first_layers(self.deepest), self.lm.outputs_of(self.layers) as seen:
            self.lm.final_states(ids, mask)
        return self._windows(seen, nn.utils.rnn.pad_sequence(places, batch_first=True), counts)


def _read(text: SenderText) -> list[list[int]]:
    """(phases, M) indices of the tokens of each window that are read."""
    return text.chosen or text.phase_tokens
