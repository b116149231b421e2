"""What can be seen inside a model's layers while it reads: forward hooks, which are gone when a block ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from latentwire.backbone.anatomy import Anatomy, decoder_layers


@dataclass
class KeysValues:
    """Keys before RoPE and values, one entry a layer, each (batch, tokens, kv_heads, head_dim)."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


@contextmanager
def outputs_of(model: PreTrainedModel, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """Layer -> its output (batch, tokens, hidden_size) in the last pass inside; layer 0 is the embedding."""
    blocks = decoder_layers(model)
    seen: dict[int, Tensor] = {}

    def keep(index: int) -> Any:
        return lambda module, args, out: seen.__setitem__(index, out[0] if isinstance(out, tuple) else out)

    hooks = []
    try:
        for k in sorted(set(layers)):
            module = model.get_input_embeddings() if k == 0 else blocks[k - 1]
            hooks.append(module.register_forward_hook(keep(k)))
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def attention(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Attention weights (batch, heads, Q, K) of every layer in the passes inside, one behind the other.

    Fused attention keeps none, so the model computes its attention eagerly for as long.
    """
    usual = model.config._attn_implementation
    seen: list[Tensor] = []
    hooks = []
    try:
        model.set_attn_implementation("eager")
        blocks: Any = decoder_layers(model)
        for block in blocks:
            hooks.append(block.self_attn.register_forward_hook(lambda module, args, out: seen.append(out[1])))
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation(usual)


@contextmanager
def keys_values(model: PreTrainedModel, anatomy: Anatomy, device: torch.device) -> Iterator[KeysValues]:
    """What the layers make of the tokens of the pass inside, brought together on one device."""
    out, hooks = KeysValues(), []

    def keep_key(module: Any, args: Any, key: Tensor) -> None:
        key = key.transpose(1, 2) if anatomy.source.heads_first else key
        out.keys.append(key.reshape(*key.shape[:2], anatomy.kv_heads, anatomy.head_dim).to(device))

    def keep_value(module: Any, args: Any, value: Tensor) -> None:
        out.values.append(value.reshape(*value.shape[:2], anatomy.kv_heads, anatomy.head_dim).to(device))

    try:
        for block in decoder_layers(model):
            hooks.append(getattr(block.self_attn, anatomy.source.key).register_forward_hook(keep_key))
            hooks.append(getattr(block.self_attn, anatomy.source.value).register_forward_hook(keep_value))
        yield out
    finally:
        for hook in hooks:
            hook.remove()
