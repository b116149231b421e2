"""Every form of reader, encoder and sender on every family, from a text to its answers."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentwire.backbone.context import Context
from latentwire.checkpoint.tensors import load_folder
from latentwire.model.pretrained import save_checkpoint
from latentwire.model.system import LatentWire
from tests.features.test_matrix import dead_parameters, module_of
from tests.systems import small_config, small_passages, small_system
from tests.tiny import tiny_lm

PARTS: dict[str, dict[str, Any]] = {
    "slots": {},
    "slots_strided": {"deep_prefix": {"pattern": "strided"}},
    "slots_low_rank": {"deep_prefix": {"rank": 4, "hidden": 0}},
    "slots_of_chosen_tokens": {"encoder": {"keep": 2}},
    "embeddings": {"features": {"use_deep_prefix": False}},
    "embeddings_coloured": {"features": {"use_deep_prefix": False}, "adapter": {"color": "full", "learn_gain": True}},
    "latent_refiner": {"features": {"use_latent_refiner": True}},
    "sender_lora": {"features": {"use_sender_lora": True}},
    "byte": {"encoder": {"type": "byte"}},
    "simple_st": {"encoder": {"type": "simple-st"}},
    "stq": {"encoder": {"type": "stq"}},
    "private_latents": {"encoder": {"type": "stq", "latent_shared_len": 3, "latent_private_len": 2}},
}
TEXTS = [p.context for p in small_passages(2)] + ["Mira sells lamps."]

every_part = pytest.mark.parametrize("part", PARTS)
every_family = pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])


def system_of(part: str, family: str) -> LatentWire:
    model = {"dtype": "float32", "receivers": {"a": "x"}}
    return small_system(small_config(model=model, **PARTS[part]), (family,))


def shaken(part: str, family: str) -> LatentWire:
    """A system whose every trained tensor is off its start, layers that begin at zero included."""
    system = system_of(part, family)
    torch.manual_seed(5)
    with torch.no_grad():
        for group in module_of(system).parameter_groups():
            for p in group.parameters:
                p.add_(torch.randn_like(p) * 0.1)
    return system


def read(system: LatentWire, texts: list[str]) -> Context:
    """Texts as the receiver reads them from their latents, in one batch."""
    z, counts = system.sender.latents_of([system.sender.prepare(text) for text in texts])
    return system.receivers["a"].read_latents(z, counts)


@torch.no_grad()
def nll(system: LatentWire, texts: list[str]) -> Tensor:
    """Of the same answer, read from the latents of some texts in one batch."""
    receiver = system.receivers["a"]
    tail = receiver.prompt.tail("Where?")
    return receiver.score(read(system, texts), [(tail, [5, 6, 7])] * len(texts)).nll


def reloaded(system: LatentWire, part: str, family: str, folder: Path) -> LatentWire:
    save_checkpoint(folder, system)
    other = system_of(part, family)
    other.load_state_dict(load_folder(folder))
    return other


@every_family
@every_part
def test_every_tensor_is_trained(part: str, family: str) -> None:
    assert not list(dead_parameters(system_of(part, family)))


@every_family
@every_part
def test_a_checkpoint_gives_the_same_answers_again(part: str, family: str, tmp_path: Path) -> None:
    system = shaken(part, family)
    once = reloaded(system, part, family, tmp_path / "once")
    twice = reloaded(once, part, family, tmp_path / "twice")
    own = nll(once, TEXTS)
    assert torch.equal(own, nll(twice, TEXTS))
    # Files are in bf16. A tensor that was not in them would be at its start.
    kept, lost = ((own - nll(s, TEXTS)).abs().max() for s in (system, system_of(part, family)))
    assert kept < 0.2 * lost


@every_family
@every_part
def test_padding_and_company_in_a_batch_do_not_matter(part: str, family: str) -> None:
    system = shaken(part, family)
    alone = torch.cat([nll(system, [text]) for text in TEXTS])
    torch.testing.assert_close(nll(system, TEXTS), alone, atol=1e-4, rtol=1e-4)


@every_family
@every_part
@torch.no_grad()
def test_generation_with_a_cache_equals_recomputation(part: str, family: str) -> None:
    system = shaken(part, family)
    receiver = system.receivers["a"]
    tail = receiver.prompt.tail("Where is it?")
    ids = torch.tensor([tail])
    new = receiver.lm.generate(read(system, TEXTS[:1]), ids, torch.ones_like(ids), 6, stop=[])
    both = torch.cat([ids, new], 1)
    hidden = receiver.lm.continue_from(read(system, TEXTS[:1]), both, torch.ones_like(both, dtype=torch.bool))
    assert receiver.lm.logits(hidden)[0, len(tail) - 1 : -1].argmax(-1).tolist() == new[0].tolist()


@every_family
@every_part
@torch.no_grad()
def test_the_models_are_as_they_were(part: str, family: str) -> None:
    """While the system is there the receiver's, when it is gone the sender's as well."""
    system = shaken(part, family)
    model, plain = system.receivers["a"].lm.model, tiny_lm(family).model
    sender, untouched = getattr(system.sender.encoder, "lm", system.receivers["a"].lm).model, tiny_lm("llama").model
    ids = torch.tensor([[3, 7, 9, 4, 12, 5]])
    assert torch.equal(model(ids).logits, plain(ids).logits)
    del system
    gc.collect()
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    # Of the sender's there may be only the layers that are read.
    known = dict((plain if sender is model else untouched).named_parameters())
    assert all(torch.equal(p, known[name]) for name, p in sender.named_parameters())
