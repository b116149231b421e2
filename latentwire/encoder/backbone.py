"""The sender: window features of a pretrained LM, then one linear map.

Pooling contiguous windows of a pretrained LM's hidden states, rather than learned queries, follows ARC-Encoder
(arXiv 2510.20535). A window's features are the RMS-normalised hidden states of its tokens at several depths,
concatenated; the map to d_z comes from the closed-form fit and is then trained on answers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentwire.backbone.lm import LanguageModel


class BackboneEncoder(nn.Module):
    """Window features (batch, M, phases * len(layers) * hidden_size) to latents (batch, M, d_z).

    The LM itself is not a parameter of this module: it is frozen, and rebuilt from its name.
    """

    mean: Tensor

    def __init__(self, lm: LanguageModel, layers: list[int], phases: int, d_z: int):
        super().__init__()
        lm.truncate(max(layers))
        self.lm = lm
        self.layers = layers
        self.phases = phases
        self.d_features = phases * len(layers) * lm.anatomy.hidden_size
        self.weight = nn.Parameter(torch.randn(self.d_features, d_z) / self.d_features**0.5)
        self.register_buffer("mean", torch.zeros(self.d_features))

    @torch.no_grad()
    def features(self, ids: Tensor, mask: Tensor, phase_tokens: Tensor) -> Tensor:
        """Features of right-padded ids (batch, T); phase_tokens (batch, phases, M) index into 1 + T, BOS first.

        Every text is read behind the sender's BOS, so `ids` starts with it.
        """
        states = self.lm.hidden_states(ids, mask, self.layers).float()
        states = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6)
        batch, phases, windows = phase_tokens.shape
        index = phase_tokens.transpose(1, 2).reshape(batch, windows * phases)
        rows = torch.arange(batch, device=ids.device)[:, None]
        return states[rows, index].reshape(batch, windows, self.d_features)

    def forward(self, features: Tensor) -> Tensor:
        """Latents (..., d_z) of window features (..., d_features), in fp32."""
        return (features.float() - self.mean) @ self.weight
