"""Shared and private latents: one message, of which each receiver reads its part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from latentwire.config.layout import LatentLayout
from latentwire.core.errors import ConfigError, WireError
from latentwire.core.names import LATENT
from latentwire.evaluation.evaluate import evaluate
from latentwire.model.pretrained import save_checkpoint
from latentwire.model.receiver import Receiver
from latentwire.model.system import LatentWire
from latentwire.training.origin import Origin
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.wire.message import Wire
from tests.features.test_matrix import dead_parameters
from tests.systems import small_config, small_passages, small_system
from tests.tiny import save_tiny

SHARED, PRIVATE = 3, 2


def system_of(kind: str = "stq", **sections: dict) -> LatentWire:
    encoder = {"type": kind, "latent_shared_len": SHARED, "latent_private_len": PRIVATE}
    return small_system(small_config(encoder=encoder, **sections))


def nll(receiver: Receiver, z: Tensor) -> Tensor:
    with receiver.using(LATENT):
        context = receiver.read_latents(z, torch.full((len(z),), z.shape[1]))
        assert context.mask.sum(1).tolist() == [len(receiver.prompt.head) + SHARED + PRIVATE] * len(z)
        return receiver.score(context, [(receiver.prompt.tail("Where?"), [5, 6])] * len(z)).nll


@torch.no_grad()
def test_a_receiver_sees_its_own_slice_and_not_the_other_s() -> None:
    system = system_of()
    torch.manual_seed(0)
    z = torch.randn(1, SHARED + 2 * PRIVATE, 16)
    before = {name: nll(receiver, z) for name, receiver in system.receivers.items()}
    for place, seen_by in ((0, "ab"), (2, "ab"), (3, "a"), (4, "a"), (5, "b"), (6, "b")):
        changed = z.clone()
        changed[0, place] += 1.0
        for name, receiver in system.receivers.items():
            assert torch.equal(nll(receiver, changed), before[name]) != (name in seen_by), (place, name)


@pytest.mark.parametrize("kind", ["stq", "byte"])
def test_queries_lean_to_where_a_receiver_reads_their_latents(kind: str) -> None:
    """That is behind the shared ones, for every receiver: not behind the private ones of another."""
    system, own = system_of(kind), [list(range(5)), [0, 1, 2, 5, 6]]
    assert [receiver.own for receiver in system.receivers.values()] == own
    bias = system.sender.encoder.pooler._bias([10], [7])  # type: ignore[operator, union-attr]
    plain = small_system(small_config(encoder={"type": kind, "latent_len": 5})).sender.encoder.pooler
    for index in own:
        assert torch.equal(bias[:, index], plain._bias([10], [5]))  # type: ignore[operator, union-attr]


def test_a_checkpoint_is_not_read_with_some_of_its_receivers_as_if_these_were_all(tmp_path: Path) -> None:
    models = {}
    for name, family in (("a", "llama"), ("b", "qwen3")):
        save_tiny(family, tmp_path / name)
        models[name] = str(tmp_path / name)
    encoder = {"type": "byte", "latent_shared_len": SHARED, "latent_private_len": PRIVATE, "model": models["a"]}
    config = small_config(encoder=encoder, model={"dtype": "float32", "receivers": models})
    save_checkpoint(tmp_path / "made", LatentWire.build(config))
    kept = Receiver.from_pretrained(tmp_path / "made", "b", {"model.receivers": models})
    assert kept.own == LatentLayout(7, SHARED, PRIVATE, ("a", "b")).own("b")
    with pytest.raises(ConfigError, match=r"model\.receivers: .*made sets latents aside .* needs all of them: a, b"):
        Receiver.from_pretrained(tmp_path / "made", "b", {"model.receivers": {"b": models["b"]}})
    left = {"checkpoint": {"init_from": str(tmp_path / "made")}, "model": {"receivers": {"b": models["b"]}}}
    with pytest.raises(ConfigError, match="so none of them can be left out"):
        Origin.of(small_config(encoder=encoder | {"latent_shared_len": SHARED + PRIVATE}, **left))


@pytest.mark.parametrize("kind", ["byte", "simple-st", "stq"])
def test_the_message_holds_all_and_positions_count_what_is_read(kind: str) -> None:
    evaluation = {"latency_samples": 0, "max_new_tokens": 3, "bootstrap": 20, "modes": ["latent", "token_budget"]}
    system = system_of(kind, evaluation=evaluation)
    message = system.sender.encode(small_passages(1)[0].context)
    assert message.latents is not None and message.latents.shape == (SHARED + 2 * PRIVATE, 16)
    results, _ = evaluate(system, small_passages(2), system.config, quiet=True)
    for name, receiver in system.receivers.items():
        tails = [len(receiver.prompt.tail(q.text)) for p in small_passages(2) for q in p.questions]
        expected = len(receiver.prompt.head) + SHARED + PRIVATE + sum(tails) / len(tails)
        assert results["receivers"][name]["positions"]["latent"] == pytest.approx(expected)
        assert results["receivers"][name]["bytes"]["wire"] == len(message.to_bytes())


def test_every_query_and_reader_is_trained() -> None:
    system = system_of()
    assert not list(dead_parameters(system, steps=4))
    module = EndToEnd(system, [system.prepare(p) for p in small_passages(2)], system.config)
    for turn, reads in ((0, [0, 1, 2, 3, 4]), (1, [0, 1, 2, 5, 6])):
        module.forward(module.batch(turn)).loss.backward()
        offset = system.sender.encoder.head.offset
        assert offset.grad.abs().sum(1).nonzero()[:, 0].tolist() == reads
        offset.grad = None


def test_one_receiver_of_a_system_reads_the_same_as_among_all() -> None:
    system = system_of()
    alone = LatentWire(system.config, system.sender, {"b": system.receivers["b"]})
    message = alone.sender.encode("The green door is in Brannock.")
    assert message == system.sender.encode("The green door is in Brannock.")
    assert alone.receivers["b"].own == [0, 1, 2, 5, 6]
    short = Wire.of(message.latents[:5])
    with pytest.raises(WireError, match="the message has 5 latents; the reader expects 7"):
        alone.receivers["b"].answer(short, "Where?")


def test_only_what_a_receiver_reads_has_to_fit_its_window() -> None:
    system = small_system(
        small_config(encoder={"type": "stq", "latent_shared_len": SHARED, "latent_private_len": 30}), ("llama", "llama")
    )
    receiver, message = system.receivers["a"], system.sender.encode("The green door is in Brannock.")
    parts = [replace(message, frame=replace(message.frame, more=n < 11)) for n in range(12)]
    assert 12 * message.latent_count > receiver.lm.anatomy.max_positions > 12 * len(receiver.own) + 40
    assert receiver.answer(parts, "Where?", 2).source == "latents"


def test_of_a_longer_text_a_receiver_reads_its_part_of_every_message() -> None:
    system = system_of()
    parts = list(system.sender.encode_stream([p.context + "\n" for p in small_passages(2)], chunk=60))
    assert len(parts) == 2 and all(len(wire.latents) == 7 for wire in parts)
    for name, places in (("a", [0, 1, 2, 3, 4]), ("b", [0, 1, 2, 5, 6])):
        receiver = system.receivers[name]
        own = np.concatenate([wire.latents[places] for wire in parts])
        receiver.own, receiver.layout = None, LatentLayout()
        expected = receiver.answer(Wire.of(own, "fp32"), "Where?", 6)
        receiver.own, receiver.layout = places, system.config.latent_layout
        assert receiver.answer(parts, "Where?", 6) == expected
