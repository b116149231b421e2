"""A second model that reads what the sender's model reads.

What a language model makes of a text predicts its own keys and values well and those of another architecture less so.
A companion of the receivers' other family adds what they miss: it reads the same tokens of each window, aligned by
characters, and the last dimensions of a latent are a linear map of its hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentwire.backbone.lm import LanguageModel
from latentwire.backbone.padding import pad_right
from latentwire.config.schema import Config
from latentwire.encoder.base import deepest_layer, over_window, states_in_windows
from latentwire.encoder.text import SenderText, by_window, shift
from latentwire.encoder.windows import Span


class Companion(nn.Module):
    """Hidden states at the tokens of each window (M, d_features) to dimensions of its latent (M, companion_d_z).

    Its model is frozen. The map starts at zero, so that a latent is what it was before until the map is fitted.
    """

    mean: Tensor

    def __init__(self, lm: LanguageModel, config: Config):
        super().__init__()
        self.layers = config.encoder.companion_layers
        lm.truncate(deepest_layer(self.layers, lm, "encoder.companion_layers"))
        self.lm = lm
        self.phases, self.keep = config.encoder.read, config.encoder.keep
        self.d_features = self.phases * len(self.layers) * lm.anatomy.hidden_size
        self.weight = nn.Parameter(torch.zeros(self.d_features, config.encoder.companion_d_z))
        self.register_buffer("mean", torch.zeros(self.d_features))

    def tokens(self, text: SenderText) -> tuple[list[int], list[Span]]:
        """A text's tokens, special ones included, and the characters of the others."""
        ids, offsets = self.lm.tokenize_with_offsets(text.text)
        before, behind = self.lm.frame
        return before + ids + behind, offsets

    def read(self, text: SenderText) -> tuple[list[int], list[int]]:
        """A text's tokens, and the places (M * phases) of those that are read, window by window."""
        ids, offsets = self.tokens(text)
        return ids, by_window(shift(text.follow(offsets), len(self.lm.frame[0])))

    def too_long(self, text: SenderText) -> str | None:
        """Why a text is longer than the companion can read; else None."""
        tokens, limit = len(self.tokens(text)[0]), self.lm.anatomy.max_positions
        return over_window("encoder.companion", tokens, limit, "companion")

    def window_features(self, texts: Sequence[SenderText]) -> list[Tensor]:
        """What it makes of each text: (M_i, d_features), fp32."""
        return self.features(*zip(*map(self.read, texts), strict=True))

    @torch.no_grad()
    def features(self, rows: Sequence[list[int]], places: Sequence[list[int]]) -> list[Tensor]:
        """`window_features` of texts given by their tokens and the places that are read: (N_i, d_features) each."""
        ids, mask = pad_right(rows, self.lm.pad_id, self.lm.device)
        with self.lm.outputs_of(self.layers) as seen:
            self.lm.final_states(ids, mask)
        return states_in_windows([seen[k] for k in self.layers], places, self.phases)

    def forward(self, features: Tensor) -> Tensor:
        """Window features (..., d_features) to the companion's dimensions of the latents (..., companion_d_z)."""
        return (features - self.mean) @ self.weight
