"""Cross-attention from some layers' hidden states to the latents, by forward hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.backbone.anatomy import decoder_layers
from latentwire.backbone.context import Context
from latentwire.backbone.hooks import Hook, forward_hooks
from latentwire.backbone.lm import LanguageModel
from latentwire.config.schema import Config
from latentwire.core.errors import ConfigError
from latentwire.features.base import ReadingFeature


class GatedCrossAttention(nn.Module):
    """hidden + tanh(gate) * out(attention(norm(hidden), latents)), gated as in Flamingo (Alayrac et al. 2022).

    Flamingo starts at a gate of zero, which first has to learn to let noise through. Here the gate starts open and
    `out` at zero, as in LoRA: nothing changes at first either, but the first gradient already says what to add.
    """

    def __init__(self, hidden_size: int, d_z: int, heads: int, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.query = nn.Linear(hidden_size, width, bias=False)
        self.memory = nn.Linear(d_z, width, bias=False)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.out = nn.Linear(width, hidden_size, bias=False)
        nn.init.zeros_(self.out.weight)
        self.gate = nn.Parameter(torch.ones(1))

    def forward(self, hidden: Tensor, latents: Tensor, mask: Tensor) -> Tensor:
        """hidden: (batch, tokens, hidden_size); latents: (batch, M, d_z) with mask (batch, M)."""
        memory = self.memory(latents)
        found = self.attention(
            self.query(self.norm(hidden.to(latents.device).float())),
            memory,
            memory,
            key_padding_mask=~mask,
            need_weights=False,
        )[0]
        return hidden + (self.gate.tanh() * self.out(found)).to(hidden)


class LatentAdapters(ReadingFeature):
    """One gated cross-attention behind each of `latent_adapters.layers` (default: four, evenly spaced)."""

    def __init__(self, config: Config, lm: LanguageModel):
        super().__init__()
        section, layers = config.latent_adapters, lm.anatomy.layers
        self.layers = section.layers
        if self.layers is None:
            count = min(4, layers)
            self.layers = [(i + 1) * layers // count for i in range(count)]
        if not all(1 <= k <= layers for k in self.layers):
            raise ConfigError(f"latent_adapters.layers: {self.layers} is not within the 1 to {layers} of {lm.name!r}")
        self.adapters = nn.ModuleList(
            GatedCrossAttention(lm.anatomy.hidden_size, config.encoder.d_z, section.heads, section.width)
            for _ in self.layers
        )
        self._read: Context | None = None

    def attach(self, model: nn.Module) -> AbstractContextManager[None]:
        """Put the hooks on; they change nothing outside of `reading`."""
        blocks = decoder_layers(model)  # type: ignore[arg-type]
        assert self.layers is not None
        hooks = [(blocks[k - 1], self._hook(adapter)) for k, adapter in zip(self.layers, self.adapters, strict=True)]
        return forward_hooks(hooks)

    def _hook(self, adapter: nn.Module) -> Hook:
        def add(module: nn.Module, args: Any, out: Any) -> Any:
            context = self._read
            if context is None or context.latents is None:
                return None
            hidden = out[0] if isinstance(out, tuple) else out
            hidden = adapter(hidden, context.latents.float(), context.latent_mask)
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        return add

    @contextmanager
    def reading(self, context: Context) -> Iterator[None]:
        before, self._read = self._read, context
        try:
            yield
        finally:
            self._read = before
