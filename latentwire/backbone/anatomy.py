"""Where a layer's keys and values come from: the only table of model families in LatentWire.

Keys are taken *before* the rotary embedding (and after the key norm, where a family has one), so that a reader may
place them at any position. Adding a family is adding a row here.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from latentwire.core.errors import ModelError

SLIDING = "sliding_attention"
FULL = "full_attention"


@dataclass(frozen=True)
class KVSource:
    """Modules of an attention block whose outputs are the keys before RoPE and the values.

    `heads_first` tells the layout of the key module's output: (batch, kv_heads, tokens, head_dim) rather than
    (batch, tokens, kv_heads, head_dim).
    """

    key: str = "k_proj"
    value: str = "v_proj"
    heads_first: bool = False


ARCHITECTURES: dict[str, KVSource] = {
    "llama": KVSource(),
    "qwen2": KVSource(),
    "qwen3": KVSource(key="k_norm"),
    "gemma3_text": KVSource(key="k_norm", heads_first=True),
}


@dataclass(frozen=True)
class Anatomy:
    """The sizes that a reader needs to know of a causal LM."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    max_positions: int
    layer_types: tuple[str, ...]
    sliding_window: int | None
    source: KVSource

    @property
    def slot_shape(self) -> tuple[int, int, int, int]:
        """(layers, kv_heads, 2, head_dim): one slot, that is one key and one value in every layer and head."""
        return self.layers, self.kv_heads, 2, self.head_dim

    @property
    def slot_size(self) -> int:
        """Numbers in one slot."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def describe(config: PretrainedConfig, name: str) -> Anatomy:
    """Read the anatomy of a model from its configuration; an architecture without a row is refused by name."""
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelError(f"model {name!r}: architecture {config.model_type!r} is not supported (supported: {known})")
    ropes = getattr(config, "rope_parameters", None) or {}  # of all layers, or for each type of them
    if any(rope.get("rope_type") == "longrope" for rope in (ropes, *ropes.values()) if isinstance(rope, dict)):
        # Its frequencies hang on the length of each call, so that a context that was read before would have others.
        raise ModelError(f"model {name!r}: rotary embeddings of type 'longrope' are not supported")
    heads = config.num_attention_heads
    layers = config.num_hidden_layers
    types = getattr(config, "layer_types", None) or [FULL] * layers
    unknown = sorted(set(types) - {FULL, SLIDING})
    if unknown:
        raise ModelError(f"model {name!r}: attention of type {unknown[0]!r} is not supported")
    return Anatomy(
        layers=layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        hidden_size=config.hidden_size,
        max_positions=config.max_position_embeddings,
        layer_types=tuple(types),
        sliding_window=getattr(config, "sliding_window", None) if SLIDING in types else None,
        source=ARCHITECTURES[config.model_type],
    )


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks of a causal LM, in order."""
    return model.get_decoder().layers
