"""Rotary embeddings as a model's own layers apply them, with or without the model's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from latentwire.backbone.anatomy import Anatomy, describe
from latentwire.backbone.load import load_config


def rope(rotary: Any, anatomy: Anatomy, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rotary cos and sin for positions (batch, n), whole or not, one pair a layer, each (batch, n, head_dim), fp32.

    rotary: the decoder's own module.
    """
    like = torch.zeros(1, dtype=torch.float32, device=positions.device)

    def pair(*kind: str) -> tuple[Tensor, Tensor]:
        cos, sin = rotary(like, positions, *kind)  # on another device where a model is spread over several
        return cos.to(positions.device), sin.to(positions.device)

    if not isinstance(getattr(rotary, "rope_type", None), dict):  # one base for all layers
        return [pair()] * anatomy.layers
    per_type = {kind: pair(kind) for kind in set(anatomy.layer_types)}
    return [per_type[kind] for kind in anatomy.layer_types]


def rotate(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embeddings (RoFormer, Su et al. 2021), half-split form; all broadcast over (..., head_dim)."""
    first, second = keys.chunk(2, dim=-1)
    return keys * cos + torch.cat([-second, first], dim=-1) * sin


class Skeleton:
    """What slots are made for where another engine holds a model's weights: its anatomy, positions and compute type."""

    def __init__(self, name: str, dtype: torch.dtype, device: torch.device | str = "cpu"):
        """name: as in `load_model`; ModelError where its configuration cannot be had or is not supported."""
        config = load_config(name)
        self.anatomy = describe(config, name)
        self.dtype = dtype
        self.device = torch.device(device)
        with torch.device("meta"):  # the module's class is all that is wanted, no weights
            kind: Any = type(AutoModelForCausalLM.from_config(config).get_decoder().rotary_emb)
        self.rotary = kind(config=config).to(self.device)

    def rope(self, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """See `rope`."""
        return rope(self.rotary, self.anatomy, positions)

    def layer_device(self, index: int) -> torch.device:
        """Where a decoder block computes."""
        return self.device
