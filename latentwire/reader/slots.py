"""Slot reader (deep prefix): M key/value slots in every layer, generated from the latents.

Like prefix tuning (Li & Liang 2021, arXiv 2101.00190), but the prefix is a function of the message. Every KV head
starts from one token of each window, another one per head and layer (phase-interleaved), so that all heads together
see the whole text in M positions: what query-agnostic eviction per head finds (KVzip, arXiv 2505.23416), without
scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from latentwire.backbone.anatomy import Anatomy
from latentwire.backbone.context import Context, cache_of
from latentwire.backbone.lm import LanguageModel
from latentwire.backbone.padding import row_mask
from latentwire.backbone.rotary import rotate
from latentwire.config.schema import Config
from latentwire.diagnostics.tensors import hand_over
from latentwire.reader.base import Reader, Statistics, behind_head
from latentwire.reader.generator import Generator


def phase_table(anatomy: Anatomy, phases: int, pattern: str) -> Tensor:
    """(layers, kv_heads): the phase of its window from which each head takes its token."""
    if pattern == "strided":
        return torch.full((anatomy.layers, anatomy.kv_heads), phases - 1)
    return (torch.arange(anatomy.layers * anatomy.kv_heads) % phases).view(anatomy.layers, anatomy.kv_heads)


def ranked_table(importance: Tensor, shown: int) -> Tensor:
    """(layers, kv_heads): the first `shown` phases in turn, from the head of greatest importance (layers, kv_heads) on.

    A few heads find what is asked about and nearly all others do without the text (retrieval heads, Wu et al. 2024,
    arXiv 2404.15574), so that it matters which tokens these few show.
    """
    order = importance.flatten().argsort(descending=True, stable=True)
    table = torch.empty_like(order)
    table[order] = torch.arange(len(order), device=order.device) % shown
    return table.view(importance.shape)


class SlotHost(Protocol):
    """What has to be known of a model to make its cache: a `LanguageModel`, or its `Skeleton`."""

    @property
    def dtype(self) -> torch.dtype:
        """That of the cache."""

    def rope(self, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Rotary cos and sin for positions (batch, n), one pair a layer."""

    def layer_device(self, index: int) -> torch.device:
        """Where a layer's part of the cache lies."""


class SlotReader(Reader):
    """Latents to slots (batch, M, layers, kv_heads, 2, head_dim), handed to the receiver as a KV cache.

    Keys are generated before RoPE and rotated when the cache is built. A token that stood d positions before the
    question in the text stands d positions before it here, although the question now starts right after slot M: keys
    may get negative positions, the question none, and plain `generate` needs no special position ids.

    phases: tokens that are read of a window; ranked: how many of these heads share that take them in the order of their
    importance (`order_heads`), None where they take all, in the order of the heads; span: tokens that a window is taken
    to have. Where the sender chooses some, all of a window stand in its middle. With encoder.latent_len windows differ
    in length from text to text, which a reader does not learn from the message: then slots stand encoder.window apart
    all the same, nearer or farther than their tokens did.
    """

    phases_of: Tensor

    def __init__(
        self,
        anatomy: Anatomy,
        d_z: int,
        phases: int,
        head_len: int,
        *,
        span: float,
        hidden: int = 0,
        neighbours: int = 0,
        rank: int | None = None,
        dropout: float = 0.0,
        pattern: str = "interleaved",
        ranked: int | None = None,
    ):
        super().__init__()
        self.shape = anatomy.slot_shape
        self.phases = phases
        self.span = span
        self.generator = Generator(d_z, anatomy.slot_size, hidden, neighbours=neighbours, rank=rank, dropout=dropout)
        self.head = nn.Parameter(torch.zeros(head_len, *self.shape))
        self.ranked = ranked
        table = phase_table(anatomy, phases, pattern)
        # Where heads are not ranked it follows from the configuration.
        self.register_buffer("phases_of", table, persistent=ranked is not None)

    @classmethod
    def of(cls, anatomy: Anatomy, config: Config, head_len: int, receiver: str) -> SlotReader:
        """The reader that a configuration asks for, for a receiver's model of this anatomy."""
        return cls(
            anatomy,
            config.encoder.d_z,
            config.encoder.read,
            head_len,
            span=config.encoder.window,
            hidden=config.deep_prefix.hidden,
            neighbours=config.deep_prefix.neighbours,
            rank=config.deep_prefix.rank,
            dropout=config.deep_prefix.dropout,
            pattern=config.deep_prefix.pattern,
            ranked=config.deep_prefix.ranked.get(receiver),
        )

    @classmethod
    def of_tokens(cls, anatomy: Anatomy, head_len: int) -> SlotReader:
        """A reader of texts whose every token has a slot of its own: the model's own cache of them."""
        return cls(anatomy, 1, 1, head_len, span=1)

    def order_heads(self, importance: Tensor) -> None:
        """Give heads their tokens in the order of their importance (layers, kv_heads)."""
        assert self.ranked is not None
        self.phases_of.copy_(ranked_table(importance, self.ranked))

    def targets(self, lm: LanguageModel, ids: Tensor, mask: Tensor, phase_tokens: Tensor) -> Tensor:
        """The receiver's own keys and values of the text, one token of each window per head: (batch, M, slot_size)."""
        kv = lm.keys_values(ids, mask)
        heads = torch.arange(self.shape[1], device=ids.device)
        rows = torch.arange(len(ids), device=ids.device)[:, None, None]
        slots = []
        for layer, (keys, values) in enumerate(zip(kv.keys, kv.values, strict=True)):
            token = phase_tokens[:, self.phases_of[layer]].transpose(1, 2)  # (batch, M, kv_heads)
            slots.append(torch.stack([keys[rows, token, heads], values[rows, token, heads]], 3))
        return torch.stack(slots, 2).flatten(2)

    def target_groups(self) -> Tensor:
        layers, heads, kinds, dim = self.shape
        layer, kind = torch.arange(layers), torch.arange(kinds)
        groups = (layer[:, None] * kinds + kind[None])[:, None, :, None]
        return groups.expand(layers, heads, kinds, dim).reshape(-1)

    def target_phases(self) -> Tensor:
        return self.phases_of.cpu()[:, :, None, None].expand(self.shape).reshape(-1)

    @torch.no_grad()
    def reset_head(self, lm: LanguageModel, head: list[int]) -> None:
        """Set the constant slots to the receiver's own keys and values of the head (the attention sink)."""
        if head:
            self.head.copy_(lm.own_slots(head))

    def opening(self, lm: LanguageModel, head: Sequence[int], ids: Sequence[int]) -> Tensor:
        """The receiver's own keys and values of the tokens: (n, *slot shape)."""
        return lm.own_slots([*head, *ids])[len(head) :]

    def context(self, lm: SlotHost, values: Tensor, counts: Tensor, opening: Tensor | None = None) -> Context:
        """See `Reader.context`; values: (batch, M, layers * kv_heads * 2 * head_dim), keys before rotation."""
        batch, longest = values.shape[:2]
        head = self.head if opening is None else torch.cat([self.head, opening.to(self.head)])
        head_len = head.shape[0]
        values = values.view(batch, longest, *self.shape)
        hand_over("slots", values, row_mask(counts, values.shape[1]))
        slots, mask = behind_head(head, values, counts)
        # Where each slot stands, for every phase, relative to a question that starts at head_len + counts.
        order = (mask.long().cumsum(1) - 1)[:, None, :]  # (batch, 1, K): index in head + latents
        within = torch.arange(self.phases) if self.phases == self.span else torch.full((self.phases,), self.span // 2)
        window, phase = order - head_len, within.to(values.device)[None, :, None]
        nominal = torch.where(window < 0, order, head_len + self.span * window + phase)
        positions = nominal - (self.span - 1) * counts[:, None, None]
        rope = lm.rope(positions.flatten(1))
        layers = []
        for layer in range(self.shape[0]):
            keys, vals = slots[:, :, layer].unbind(3)  # (batch, K, kv_heads, head_dim)
            cos, sin = (t.view(batch, self.phases, -1, t.shape[-1])[:, self.phases_of[layer]] for t in rope[layer])
            keys = rotate(keys.transpose(1, 2).float(), cos, sin)
            place = lm.layer_device(layer)
            layers.append((keys.to(place, lm.dtype), vals.transpose(1, 2).to(place, lm.dtype)))
        return Context(cache_of(layers), mask)

    def known_statistics(self, lm: LanguageModel) -> Statistics:
        """Those of the targets, which the closed form left in the generator: a layer's keys or values share one."""
        return Statistics(self.generator.shift, self.generator.scale, self.target_groups().to(lm.device))

    def expected_squares(self) -> Tensor:
        return self.generator.scale.pow(2) + self.generator.shift.pow(2)

    def parts(self, values: Tensor) -> Tensor:
        """The values (not keys) of the first layer: (..., kv_heads, head_dim)."""
        return values.unflatten(-1, self.shape)[..., 0, :, 1, :]

    def parts_of_tokens(self, lm: LanguageModel, ids: Tensor) -> Tensor:
        """The first layer's values: (n, kv_heads, head_dim)."""
        return lm.first_values(ids).float()
