"""Query-agnostic eviction: the receiver reads the whole text, then drops keys and values until few positions are left.

The presses of the package `kvpress` (NVIDIA) choose, each KV head for itself. This file hangs them onto the model: the
package's own hooks ask for `cache_position`, which Transformers no longer passes to attention. Presses that only hide
what they evict (AdaKV, KVzip) are not among them: the positions would still be there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from kvpress import ExpectedAttentionPress, KeyDiffPress, KnormPress, ScorerPress
from torch import Tensor
from torch.nn import functional as F

from latentwire.backbone.anatomy import decoder_layers
from latentwire.backbone.context import Context, cache_of
from latentwire.backbone.hooks import forward_hooks
from latentwire.backbone.lm import LanguageModel
from latentwire.backbone.padding import pad_left
from latentwire.backbone.rotary import rotate
from latentwire.model.encoding import ReceiverText
from latentwire.model.receiver import Receiver

PRESSES: dict[str, type[ScorerPress]] = {
    "expected_attention": ExpectedAttentionPress,  # Devoto et al. 2025, arXiv 2510.00636
    "knorm": KnormPress,  # Devoto et al. 2024, arXiv 2406.11430
    "keydiff": KeyDiffPress,  # Park et al. 2025, arXiv 2504.15364
}


@torch.no_grad()
def read_evicted(receiver: Receiver, texts: Sequence[ReceiverText]) -> Context:
    """Read texts and keep as many positions of each as head and latents take, in every layer and head.

    Texts are read one by one, since presses know of no padding. In a layer with a sliding window, what was kept from
    behind the window stays visible.
    """
    receiver.check_length(max(len(text.ids) for text in texts))
    press, rows = receiver.config.evaluation.press, []
    for text in texts:
        keep = text.head_len + text.latents + receiver.extra_positions
        rows.append(_read(receiver.lm, press, text.ids, keep))
    return _stack(rows)


def _read(lm: LanguageModel, kind: str, ids: list[int], keep: int) -> Context:
    """Read one text, of which `keep` positions are left."""
    row, mask = pad_left([ids], lm.pad_id, lm.device)
    if keep >= len(ids):
        return lm.prefill(mask, ids=row)
    press = PRESSES[kind](compression_ratio=1 - (keep + 0.5) / len(ids))  # the half, as the package rounds down
    if isinstance(press, ExpectedAttentionPress):
        press.n_sink = min(press.n_sink, keep)
    with _pressing(lm, press):
        context = lm.prefill(mask, ids=row)
    # A question starts right behind a context, and so at a smaller position than behind the text. Keys are moved as
    # far, so that it sees each of them at the distance at which it was read.
    moved = torch.full((1, 1), keep - len(ids), device=lm.device)
    for layer, rope in zip(context.cache.layers, lm.rope(moved), strict=True):
        cos, sin = (part.to(layer.keys.device) for part in rope)
        scale = torch.hypot(cos, sin)  # some kinds of RoPE also scale, which was done when the key was made
        layer.keys = rotate(layer.keys.float(), cos / scale, sin / scale).to(layer.keys.dtype)
    return Context(context.cache, mask[:, :keep])


@contextmanager
def _pressing(lm: LanguageModel, press: ScorerPress) -> Iterator[None]:
    """For a while, what a pass caches is evicted behind each layer's attention."""

    def evict(attention: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer = kwargs["past_key_values"].layers[attention.layer_idx]
        hidden = kwargs["hidden_states"]
        layer.keys, layer.values = press.compress(attention, hidden, layer.keys, layer.values, output[1], kwargs)

    def rotary(index: int) -> Any:
        """Cos and sin as presses ask an attention module for them."""
        return lambda like, positions: tuple(part.to(like) for part in lm.rope(positions)[index])

    blocks: Any = decoder_layers(lm.model)
    attentions = [block.self_attn for block in blocks]
    try:
        for index, attention in enumerate(attentions):
            attention.rotary_emb = rotary(index)
        with forward_hooks(((attention, evict) for attention in attentions), with_kwargs=True):
            yield
    finally:
        for attention in attentions:
            vars(attention).pop("rotary_emb", None)


def _stack(rows: Sequence[Context]) -> Context:
    """Contexts of one text each, as one context."""
    longest = max(row.mask.shape[1] for row in rows)

    def together(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([F.pad(t, (0, 0, longest - t.shape[2], 0)) for t in tensors])

    by_layer = zip(*(row.cache.layers for row in rows), strict=True)
    cache = cache_of(
        (together([one.keys for one in layer]), together([one.values for one in layer])) for layer in by_layer
    )
    return Context(cache, torch.cat([F.pad(row.mask, (longest - row.mask.shape[1], 0)) for row in rows]))
