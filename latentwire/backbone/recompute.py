"""Gradient checkpointing of decoder blocks that read on from a KV cache (Chen et al. 2016, arXiv 1604.06174).

Transformers' own form drops the cache, which is how a receiver is given its context. Here a block's part of the cache
is an input and an output of what is computed again, so that gradients reach the context and nothing is cached twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel

from latentwire.backbone.anatomy import decoder_layers

State = Callable[[], AbstractContextManager[None]]


@contextmanager
def recompute_blocks(model: PreTrainedModel, state: Callable[[], State]) -> Iterator[None]:
    """Keep only the inputs of every decoder block for the backward pass, and compute the rest again from them.

    By then, adapters may have been switched: `state()` is called in the forward pass, and what it gives brings back
    what was switched on then.
    """
    before = [(block, block.__dict__.get("forward")) for block in decoder_layers(model)]
    for index, (block, _) in enumerate(before):
        block.forward = _recomputed(block.forward, index, state)  # type: ignore[assignment]
    try:
        yield
    finally:
        for block, forward in before:
            if forward is None:
                del block.forward
            else:
                block.forward = forward


def _recomputed(run: Callable[..., Any], index: int, state: Callable[[], State]) -> Callable[..., Any]:
    def forward(hidden: Tensor, *args: Any, past_key_values: DynamicCache | None = None, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return run(hidden, *args, past_key_values=past_key_values, **kwargs)
        again: State = nullcontext

        def block(hidden: Tensor, keys: Tensor | None, values: Tensor | None) -> Any:
            cache = None if past_key_values is None else DynamicCache()
            if cache is not None and keys is not None and values is not None:
                cache.update(keys, values, index)
            with again():
                out = run(hidden, *args, past_key_values=cache, **kwargs)
            return out, *_entry(cache, index)

        out, keys, values = checkpoint(block, hidden, *_entry(past_key_values, index), use_reentrant=False)
        again = state()
        if past_key_values is not None:
            if _entry(past_key_values, index)[0] is None:
                past_key_values.update(keys, values, index)
            else:
                past_key_values.layers[index].keys, past_key_values.layers[index].values = keys, values
        return out

    return forward


def _entry(cache: DynamicCache | None, index: int) -> tuple[Tensor | None, Tensor | None]:
    """A layer's keys and values in a cache, as far as it has any."""
    if cache is None or index >= len(cache.layers):
        return None, None
    return cache.layers[index].keys, cache.layers[index].values
