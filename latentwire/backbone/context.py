"""What a model has read: a key/value cache with a mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache


@dataclass
class Context:
    """What a receiver has read before the question, left-padded.

    cache: keys and values of K positions in every layer; mask: (batch, K), True where a position is real.
    The question starts right after: at position `mask.sum(1)`. What was read from latents also carries them, (batch, M,
    d_z) right-padded with `latent_mask` (batch, M), for features that look at them again, and what the reader generated
    from them (batch, M, d_out), for losses.
    """

    cache: DynamicCache
    mask: Tensor
    latents: Tensor | None = None
    latent_mask: Tensor | None = None
    generated: Tensor | None = None

    def repeat(self, counts: Sequence[int]) -> Context:
        """Repeat row i counts[i] times: one context for several questions. The original stays as it is."""
        return self.rows(torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)))

    def rows(self, index: Tensor) -> Context:
        """The rows of these numbers (n,), in this order. The original stays as it is."""
        index = index.to(self.mask.device)
        cache = rearranged(self.cache, lambda t: t[index.to(t.device)])
        latents, latent_mask = (None if t is None else t[index] for t in (self.latents, self.latent_mask))
        return Context(cache, self.mask[index], latents, latent_mask)


def cache_of(layers: Iterable[tuple[Tensor, Tensor]]) -> DynamicCache:
    """A cache of each layer's keys and values (batch, kv_heads, K, head_dim)."""
    cache = DynamicCache()
    for i, (keys, values) in enumerate(layers):
        cache.update(keys, values, i)
    return cache


def rearranged(cache: DynamicCache, rows: Callable[[Tensor], Tensor]) -> DynamicCache:
    """A new cache of what `rows` makes of each layer's keys and values."""
    return cache_of((rows(layer.keys), rows(layer.values)) for layer in cache.layers)
