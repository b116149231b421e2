"""The latent refiner: nothing at first, trained with everything else, blind to padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentwire.config import load_config
from latentwire.encoder.refiner import LatentRefiner
from latentwire.encoder.registry import ENCODERS
from latentwire.model.system import LatentWire
from latentwire.training.loop import Trainer
from latentwire.training.stages.end_to_end import EndToEnd
from tests import ROOT
from tests.systems import assert_kept, end_to_end, small_config, small_passages, small_system

ON = {"use_latent_refiner": True}


def system_with(kind: str = "backbone", on: bool = True, **section: object) -> LatentWire:
    config = small_config(encoder={"type": kind}, features={"use_latent_refiner": on}, latent_refiner=section)
    return small_system(config)


def opened(**section: object) -> LatentRefiner:
    """A refiner that changes something."""
    torch.manual_seed(0)
    refiner = LatentRefiner(small_config(features=ON, latent_refiner=section))
    with torch.no_grad():
        torch.nn.init.normal_(refiner.outer.weight, std=0.3)
    return refiner


def latents() -> tuple[Tensor, list[int]]:
    torch.manual_seed(1)
    return torch.randn(3, 5, 16), [5, 2, 3]


@pytest.mark.parametrize("kind", ENCODERS)
def test_it_starts_as_the_identity(kind: str) -> None:
    plain, refined = system_with(kind, on=False), system_with(kind)
    refined.sender.encoder.load_state_dict(plain.sender.encoder.state_dict())
    texts = [p.context for p in small_passages(3)]
    assert refined.sender.encode_batch(texts, "fp32") == plain.sender.encode_batch(texts, "fp32")


@torch.no_grad()
def test_padding_does_not_change_what_it_makes() -> None:
    refiner = opened()
    z, counts = latents()
    together = refiner(z, counts)
    assert not torch.allclose(together, z)
    for i, n in enumerate(counts):
        torch.testing.assert_close(refiner(z[i : i + 1, :n], [n])[0], together[i, :n], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_latent_sees_the_whole_message_and_its_order() -> None:
    refiner = opened()
    z, counts = latents()
    before = refiner(z, counts)
    z[1, 1] += 1.0
    after = refiner(z, counts)
    assert not torch.allclose(after[1, 0], before[1, 0])  # also what lies behind it
    assert torch.equal(after[0], before[0])
    turned = refiner(z[:1].flip(1), [5])
    assert not torch.allclose(turned.flip(1), before[:1], atol=1e-3)


def test_it_is_a_group_of_its_own_and_moves(tmp_path: Path) -> None:
    config = small_config(features=ON, optimizer={"lr_sender": 1e-2, "lr_encoder": 1e-5})
    system = small_system(config)
    module = end_to_end(system)
    groups = {g.name: g for g in module.parameter_groups()}
    assert groups["latent_refiner"].lr == 1e-2 and groups["encoder"].lr == 1e-5
    own = {id(p) for p in system.sender.refiner.parameters()}  # type: ignore[union-attr]
    assert {id(p) for p in groups["latent_refiner"].parameters} == own
    trainer = Trainer(module, config, tmp_path, 3)
    records = [trainer.take_step() for _ in range(3)]
    assert float(system.sender.refiner.outer.weight.detach().abs().max()) > 0  # type: ignore[union-attr]
    assert all(record["grad_norm/latent_refiner"] > 0 for record in records)
    trainer.save()
    resumed = small_system(config)
    again = Trainer(EndToEnd(resumed, module.passages, config), config, tmp_path, 3)
    texts = [p.context for p in small_passages(2)]
    assert resumed.sender.encode_batch(texts) != system.sender.encode_batch(texts)
    again.restore()
    assert resumed.sender.encode_batch(texts) == system.sender.encode_batch(texts)


def test_saved_and_loaded_it_sends_the_same() -> None:
    system, other = system_with(), system_with()
    torch.manual_seed(2)
    with torch.no_grad():
        for p in system.sender.refiner.parameters():  # type: ignore[union-attr]
            p.add_(torch.randn_like(p))
    assert_kept(system, other, "latent_refiner", [p.context for p in small_passages(3)], "sender: latent_refiner")


def test_dropout_works_where_gradients_are_on_and_nowhere_else() -> None:
    refiner = opened(dropout=0.5)
    z, counts = latents()
    assert not torch.equal(refiner(z, counts), refiner(z, counts))
    with torch.no_grad():
        assert torch.equal(refiner(z, counts), refiner(z, counts))


def test_the_smoke_configuration_and_the_flag_switch_it_on() -> None:
    smoke = ROOT / "configs" / "smoke"
    assert load_config(smoke / "refiner.json").features.use_latent_refiner
    assert not load_config(smoke / "base.json").features.use_latent_refiner
    assert load_config(smoke / "base.json", flags={"features.use_latent_refiner": True}) == load_config(
        smoke / "refiner.json"
    )


def test_it_has_the_layers_that_are_asked_for() -> None:
    assert [len(opened(layers=layers).blocks) for layers in (1, 3)] == [1, 3]
