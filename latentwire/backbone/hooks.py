"""What can be seen inside a model's layers while it reads: forward hooks, which are gone when a block ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from latentwire.backbone.anatomy import Anatomy, decoder_layers


@dataclass
class KeysValues:
    """Keys before RoPE and values, one entry a layer, each (batch, tokens, kv_heads, head_dim)."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


Hook = Callable[..., Any]
"""What `register_forward_hook` takes: sees a module, its arguments and its output, which it may replace."""


@contextmanager
def forward_hooks(hooks: Iterable[tuple[nn.Module, Hook]], *, with_kwargs: bool = False) -> Iterator[None]:
    """Hooks on modules, which are taken off when the block ends. with_kwargs: hooks see named arguments, too."""
    handles = []
    try:
        for module, hook in hooks:
            handles.append(module.register_forward_hook(hook, with_kwargs=with_kwargs))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def outputs_of(model: PreTrainedModel, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Layer -> its output (batch, tokens, hidden_size) in the last pass inside; layer 0 is the embedding."""
    seen: dict[int, Tensor] = {}

    def keep(index: int) -> Hook:
        return lambda module, args, out: seen.__setitem__(index, out[0] if isinstance(out, tuple) else out)

    modules = [model.get_input_embeddings(), *decoder_layers(model)]
    with forward_hooks((modules[k], keep(k)) for k in set(layers)):
        yield seen


@contextmanager
def attention(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Attention weights (batch, heads, Q, K) of every layer in the passes inside, one behind the other.

    Fused attention keeps none, so the model computes its attention eagerly for as long.
    """
    usual = model.config._attn_implementation
    blocks: Any = decoder_layers(model)
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        seen.append(out[1])

    try:
        model.set_attn_implementation("eager")
        with forward_hooks((block.self_attn, keep) for block in blocks):
            yield seen
    finally:
        model.set_attn_implementation(usual)


@contextmanager
def keys_values(model: PreTrainedModel, anatomy: Anatomy, device: torch.device) -> Iterator[KeysValues]:
    """What the layers make of the tokens of the pass inside, brought together on one device."""
    source, out = anatomy.source, KeysValues()

    def keep_key(module: nn.Module, args: Any, key: Tensor) -> None:
        key = key.transpose(1, 2) if source.heads_first else key
        out.keys.append(key.reshape(*key.shape[:2], anatomy.kv_heads, anatomy.head_dim).to(device))

    def keep_value(module: nn.Module, args: Any, value: Tensor) -> None:
        out.values.append(value.reshape(*value.shape[:2], anatomy.kv_heads, anatomy.head_dim).to(device))

    attentions = [block.self_attn for block in decoder_layers(model)]
    with forward_hooks(
        (getattr(attention, name), keep)
        for attention in attentions
        for name, keep in ((source.key, keep_key), (source.value, keep_value))
    ):
        yield out
