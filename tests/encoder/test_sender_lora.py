"""LoRA on the sender's model: nothing at first, trained through the wire, no say in which tokens are read."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from latentwire.config.load import config_from_dict
from latentwire.core.errors import ConfigError
from latentwire.model.pretrained import save_checkpoint
from latentwire.model.system import LatentWire, load_sender_state
from latentwire.training.loop import Trainer
from latentwire.training.origin import Origin
from latentwire.training.stages import closed_form
from latentwire.training.stages.end_to_end import EndToEnd
from tests.features.test_matrix import dead_parameters
from tests.systems import assert_kept, end_to_end, latents_of, small_config, small_passages, small_system

ON = {"use_sender_lora": True}
TEXTS = [p.context for p in small_passages(3)] + ["Mira sells lamps."]


def system_with(on: bool = True, keep: int | None = None, layers: tuple[int, ...] = (0, 1)) -> LatentWire:
    encoder = {"keep": keep, "layers": list(layers)}
    return small_system(small_config(encoder=encoder, features={"use_sender_lora": on}))


def shake(system: LatentWire) -> None:
    torch.manual_seed(4)
    with torch.no_grad():
        for p in system.sender.lora.trainable_parameters():  # type: ignore[union-attr]
            p.add_(torch.randn_like(p) * 0.3)


@pytest.mark.parametrize("keep", [None, 2])
def test_it_starts_as_the_frozen_model(keep: int | None) -> None:
    plain, tuned = (latents_of(system_with(on, keep), TEXTS) for on in (False, True))
    for a, b in zip(plain, tuned, strict=True):
        torch.testing.assert_close(b, a)


@pytest.mark.parametrize("keep", [None, 2])
def test_padding_does_not_change_what_it_makes(keep: int | None) -> None:
    system = system_with(keep=keep)
    before = latents_of(system, TEXTS)
    shake(system)
    together = latents_of(system, TEXTS)
    for text, row, old in zip(TEXTS, together, before, strict=True):
        torch.testing.assert_close(latents_of(system, [text])[0], row, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(row, old, atol=1e-2)


@pytest.mark.parametrize("keep", [None, 2])
def test_every_tensor_is_trained_within_two_steps_of_each_reader(keep: int | None) -> None:
    assert not list(dead_parameters(system_with(keep=keep), steps=4))


def test_only_layers_that_are_read_have_it() -> None:
    shallow, deep = system_with(keep=2), system_with(layers=(0, 2))
    names = set(shallow.sender.lora.state_dict())  # type: ignore[union-attr]
    assert names and all("layers.0." in name for name in names)
    assert len(deep.sender.lora.state_dict()) == 2 * len(names)  # type: ignore[union-attr]


def test_the_untouched_model_chooses_the_tokens() -> None:
    system, plain = system_with(keep=2), system_with(False, 2)
    shake(system)
    for text in TEXTS:
        assert system.sender.prepare(text).chosen == plain.sender.prepare(text).chosen


def test_the_closed_form_solves_the_untouched_model() -> None:
    weights = []
    for on in (False, True):
        system = system_with(on)
        closed_form.fit(system, [system.prepare(p) for p in small_passages()], held_out=1, ridge=0.1)
        weights.append(system.sender.encoder.weight)  # type: ignore[union-attr]
    torch.testing.assert_close(weights[0], weights[1])


def test_it_is_a_group_of_its_own_and_resumes(tmp_path: Path) -> None:
    config = small_config(features=ON, optimizer={"lr_sender": 1e-2, "lr_encoder": 1e-5})
    system = small_system(config)
    module = end_to_end(system)
    assert {g.name: g.lr for g in module.parameter_groups()}["sender_lora"] == 1e-2
    trainer = Trainer(module, config, tmp_path, 3)
    assert all(trainer.take_step()["grad_norm/sender_lora"] > 0 for _ in range(3))
    trainer.save()
    resumed = small_system(config)
    assert resumed.sender.encode_batch(TEXTS) != system.sender.encode_batch(TEXTS)
    Trainer(EndToEnd(resumed, module.passages, config), config, tmp_path, 3).restore()
    assert resumed.sender.encode_batch(TEXTS) == system.sender.encode_batch(TEXTS)


def test_saved_and_loaded_it_sends_the_same() -> None:
    system, other = system_with(), system_with()
    shake(system)
    assert_kept(system, other, "lora", TEXTS, "LoRA 'sender'")


def test_it_comes_on_top_of_a_checkpoint_without_it() -> None:
    plain, tuned = system_with(False), system_with()
    torch.nn.init.normal_(plain.sender.encoder.weight)  # type: ignore[union-attr]
    load_sender_state(tuned.sender, plain.state_dict(), start=True)
    for a, b in zip(latents_of(plain, TEXTS), latents_of(tuned, TEXTS), strict=True):
        torch.testing.assert_close(b, a)


@pytest.mark.parametrize(
    ("encoder", "match"),
    [({"type": "stq"}, "only encoder.type = 'backbone'"), ({"layers": [0]}, "the embedding alone")],
)
def test_where_it_could_do_nothing_it_is_refused(encoder: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=f"features.use_sender_lora: .*{match}"):
        config_from_dict({"features": ON, "encoder": encoder}, "command line", {})


@pytest.mark.parametrize("on", [True, False])
def test_a_new_receiver_with_lora_has_its_rank(on: bool, tmp_path: Path) -> None:
    models = {"dtype": "float32", "receivers": {name: "tiny" for name in "abc"}}
    save_checkpoint(tmp_path, small_system(small_config(features={"use_sender_lora": on})))
    ours = small_config(
        features={"use_sender_lora": on, "use_lora": True},
        lora={"r": 2},
        model=models,
        curriculum={"train_only": ["c"]},
        checkpoint={"init_from": str(tmp_path)},
    )
    with pytest.raises(ConfigError, match=r"trained with lora.r = 4, not 2") if on else nullcontext():
        assert Origin.of(ours)


def test_only_the_first_layers_have_it_where_that_is_asked_for() -> None:
    config = small_config(encoder={"layers": [0, 2]}, features=ON, lora={"first_n": 1})
    system = small_system(config)
    names = set(system.sender.lora.state_dict())  # type: ignore[union-attr]
    assert names and all("layers.0." in name for name in names)
