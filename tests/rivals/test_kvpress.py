"""The package kvpress on tiny models of every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from latentwire.backbone.lm import LanguageModel
from latentwire.data.example import Passage
from latentwire.model.receiver import Receiver
from tests.systems import small_config, small_passages, small_system
from tests.tiny import FAMILIES, SENTENCES, tiny_lm

pytest.importorskip("kvpress", reason="the package kvpress is not installed")
from latentwire.rivals.kvpress import PRESSES, read_evicted

WIDE = {"sliding_window": 400}
"""Gemma's window, so wide that it hides nothing."""


def package_reads(lm: LanguageModel, kind: str, ids: list[int], keep: int) -> DynamicCache:
    """By the package's own hooks, which need to be told `cache_position`."""

    def tell(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"cache_position": torch.arange(kwargs["hidden_states"].shape[1])}

    for layer in lm.model.model.layers:
        layer.self_attn.register_forward_pre_hook(tell, with_kwargs=True)
    cache = DynamicCache()
    with PRESSES[kind](compression_ratio=1 - (keep + 0.5) / len(ids))(lm.model):
        lm.model(torch.tensor([ids]), past_key_values=cache)
    for layer in lm.model.model.layers:
        layer.self_attn._forward_pre_hooks.clear()
    return cache


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", PRESSES)
@torch.no_grad()
def test_a_question_sees_what_the_package_keeps_at_its_own_distance(family: str, kind: str) -> None:
    config = small_config(evaluation={"press": kind})
    system = small_system(config, (family,))
    changes = WIDE if family == "gemma3" else {}
    receiver = Receiver("a", tiny_lm(family, **changes), config)
    passages = [small_passages(1)[0], Passage("long", " ".join(SENTENCES[:5]), ())]
    texts = [system.prepare(passage)[1]["a"] for passage in passages]
    context = read_evicted(receiver, texts)
    keep = [text.head_len + text.latents for text in texts]
    assert context.mask.sum(1).tolist() == keep and context.mask.shape[1] == max(keep)
    assert all(len(text.ids) > 2 * n for text, n in zip(texts, keep, strict=True))
    for attention in (layer.self_attn for layer in receiver.lm.model.model.layers):
        assert not attention._forward_hooks and not hasattr(attention, "rotary_emb")
    if family == "gemma3" and kind == "expected_attention":
        return  # the package asks Gemma's RoPE for cos and sin without naming the kind of layer
    tail = torch.tensor([receiver.prompt.tail("Where does Mira live?")])
    seen = receiver.lm.continue_from(context, tail.repeat(2, 1), torch.ones_like(tail).repeat(2, 1))
    lm = tiny_lm(family, **changes)
    for row, text, count in zip(seen, texts, keep, strict=True):
        cache = package_reads(lm, kind, text.ids, count)
        assert cache.layers[0].keys.shape[2] == count
        positions = torch.arange(len(text.ids), len(text.ids) + tail.shape[1])[None]
        expected = lm.model.model(input_ids=tail, past_key_values=cache, position_ids=positions).last_hidden_state
        torch.testing.assert_close(row, expected[0], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_text_that_fits_is_read_as_it_is() -> None:
    system = small_system(small_config(encoder={"window": 1}), ("llama",))
    receiver, text = system.receivers["a"], system.prepare(small_passages(1)[0])[1]["a"]
    whole, evicted = receiver.read_text([text.ids]), read_evicted(receiver, [text])
    for one, other in zip(whole.cache.layers, evicted.cache.layers, strict=True):
        assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)
