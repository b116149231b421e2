"""A companion of the sender's model: it adds what the other family's readers miss, and leaves the rest as it is."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentwire.config.form import unlike_forms
from latentwire.config.load import config_from_dict
from latentwire.core.errors import ConfigError, ModelError
from latentwire.model.pretrained import load_checkpoint, save_checkpoint
from latentwire.model.system import LatentWire
from latentwire.training.origin import READ_LATENTS, Origin, widened
from latentwire.training.stages.closed_form import fit, fit_companion
from tests.features.test_matrix import dead_parameters
from tests.systems import assert_kept, latents_of, saved_run, small_config, small_passages, small_system

TEXTS = [p.context for p in small_passages(3)] + ["Mira sells lamps."]
WITH = {"companion": "tiny-gemma3", "companion_layers": [1, 2], "companion_d_z": 6, "d_z": 22}


def system_with(keep: int | None = None, lora: bool = False, **encoder: object) -> LatentWire:
    return small_system(small_config(encoder=WITH | {"keep": keep} | encoder, features={"use_sender_lora": lora}))


def fitted(system: LatentWire, passages: int = 40) -> LatentWire:
    prepared = [system.prepare(p) for p in small_passages(passages)]
    fit(system, prepared, held_out=4, ridge=1e-2)
    fit_companion(system, system.receivers, prepared, held_out=4, ridge=1e-2)
    return system


def missed(system: LatentWire, name: str) -> float:
    """Mean squared distance of a reader's slots from what it should make, over its targets' variance."""
    texts = [system.prepare(p) for p in small_passages(8)]
    receiver = system.receivers[name]
    with torch.no_grad():
        z, counts = system.sender.latents_of([sent for sent, _ in texts])
        made, (wanted, _) = receiver.reader.generate(z, counts), receiver.targets([own[name] for _, own in texts])
    real = torch.arange(z.shape[1])[None] < counts[:, None]
    return float((made[real] - wanted[real]).pow(2).mean() / wanted[real].var(0).mean())


@pytest.mark.parametrize("keep", [None, 2])
def test_it_reads_the_tokens_that_the_receiver_of_its_kind_writes_its_slots_from(keep: int | None) -> None:
    system = system_with(keep)
    sent, own = system.prepare(small_passages(1)[0])
    ids, places = system.sender.encoder.companion.read(sent)  # type: ignore[union-attr]
    assert ids == own["b"].ids
    assert [places[p :: len(own["b"].phase_tokens)] for p in range(len(own["b"].phase_tokens))] == own["b"].phase_tokens


@torch.no_grad()
def test_its_part_of_latents_has_a_mean_of_zero_as_fitted() -> None:
    companion = fitted(system_with(), 8).sender.encoder.companion  # type: ignore[union-attr]
    texts = [system_with().sender.prepare(p.context) for p in small_passages(8)[4:]]
    seen = torch.cat(companion.window_features(texts))  # what is left when held-out passages are set aside
    assert seen.mean(0).abs().max() > 0.1
    made = companion(seen)
    assert (made.mean(0).abs() < 1e-3 * made.std(0)).all()


@pytest.mark.parametrize("keep", [None, 2])
@pytest.mark.parametrize("lora", [False, True])
def test_company_in_a_batch_does_not_change_latents(keep: int | None, lora: bool) -> None:
    system = system_with(keep, lora)
    with torch.no_grad():
        system.sender.encoder.companion.weight.normal_()  # type: ignore[union-attr]
    for text, row in zip(TEXTS, latents_of(system, TEXTS), strict=True):
        torch.testing.assert_close(latents_of(system, [text])[0], row, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("keep", [None, 2])
def test_lora_on_the_senders_model_leaves_the_companion_alone(keep: int | None) -> None:
    plain, tuned = (fitted(system_with(keep, lora)) for lora in (False, True))
    with torch.no_grad():
        for p in tuned.sender.lora.trainable_parameters():  # type: ignore[union-attr]
            p.add_(torch.randn_like(p) * 0.3)
    for a, b in zip(latents_of(plain, TEXTS), latents_of(tuned, TEXTS), strict=True):
        torch.testing.assert_close(b[:, 16:], a[:, 16:])
        assert not torch.allclose(b[:, :16], a[:, :16], atol=1e-2)


def test_the_fit_gives_its_own_kind_what_it_missed_and_changes_no_other_dimension() -> None:
    system = system_with()
    prepared = [system.prepare(p) for p in small_passages(40)]
    fit(system, prepared, held_out=4, ridge=1e-2)
    before, without = latents_of(system, TEXTS), {name: missed(system, name) for name in "ab"}
    scores = fit_companion(system, {"b": system.receivers["b"]}, prepared, held_out=4, ridge=1e-2)
    for old, new in zip(before, latents_of(system, TEXTS), strict=True):
        torch.testing.assert_close(new[:, :16], old[:, :16])
        assert not old[:, 16:].any() and 0.3 < float(new[:, 16:].std()) < 3
    assert missed(system, "a") == without["a"]  # was not among those that it was fitted to
    assert missed(system, "b") < 0.7 * without["b"]
    assert 0.3 < scores["b"] <= 1


@pytest.mark.parametrize("lora", [False, True])
def test_every_tensor_is_trained_within_two_steps_of_each_reader(lora: bool) -> None:
    assert not list(dead_parameters(fitted(system_with(2, lora)), steps=4))


def test_a_checkpoint_keeps_it(tmp_path: Path) -> None:
    system = fitted(system_with(2))
    assert_kept(system, fitted(system_with(2), 24), "encoder.companion", TEXTS, "companion")


def test_a_checkpoint_without_one_gets_wider_latents_that_say_the_same(tmp_path: Path) -> None:
    run = saved_run(tmp_path)
    plain = load_checkpoint(run / "last")
    with torch.no_grad():  # what training leaves at zero in this checkpoint must not hide what is put in its place
        for receiver in plain.receivers.values():
            for tensor in (receiver.reader.generator.centre, *receiver.reader.generator.mlp.parameters()):  # type: ignore[union-attr]
                tensor.normal_()
    save_checkpoint(run / "last", plain)
    plain = load_checkpoint(run / "last")
    raw = plain.config.model_dump(mode="json")
    raw["encoder"] |= WITH | {"companion": raw["model"]["receivers"]["b"]}
    raw["checkpoint"]["init_from"] = str(run)
    config = config_from_dict(raw, "test", {})
    wide, origin = LatentWire.build(config), Origin.of(config)
    assert origin is not None and origin.lacks_companion
    origin.take_up(wide)
    message, wider = plain.sender.encode(TEXTS[0], "fp32"), wide.sender.encode(TEXTS[0], "fp32")
    torch.testing.assert_close(
        torch.as_tensor(wider.latents)[:, :16], torch.as_tensor(message.latents), atol=1e-5, rtol=1e-5
    )
    for name in "ab":
        values = [
            s.receivers[name].reader.generate(torch.as_tensor(w.latents)[None], torch.tensor([len(w.latents)]))
            for s, w in ((plain, message), (wide, wider))
        ]
        torch.testing.assert_close(values[1], values[0], atol=1e-5, rtol=1e-5)
    prepared = [wide.prepare(p) for p in small_passages(24)]
    before = missed(wide, "b")
    fit_companion(wide, {"b": wide.receivers["b"]}, prepared, held_out=4, ridge=1e-2)
    assert missed(wide, "b") < before
    save_checkpoint(tmp_path / "wide", wide)
    again = load_checkpoint(tmp_path / "wide")
    assert again.sender.encode(TEXTS[0], "fp32").latents.shape[1] == 22


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"d_z": 20}, "encoder.d_z: 20 without the companion's 6 is not the 16"),
        ({"curriculum": {"train_only": ["b"]}}, "was trained with encoder"),
        ({"features": {"use_latent_refiner": True}}, "companion: features.use_latent_refiner"),
    ],
)
def test_what_does_not_go_with_a_companion_that_comes_later(
    tmp_path: Path, changes: dict[str, object], refusal: str
) -> None:
    refiner = {"latent_refiner": {}} if "features" in changes else {}
    system = small_system(small_config(features=changes.get("features", {}), **refiner))
    save_checkpoint(tmp_path / "old", system)
    raw = system.config.model_dump(mode="json")
    raw["encoder"] |= WITH | {"d_z": changes.get("d_z", 22)}
    raw["checkpoint"]["init_from"] = str(tmp_path / "old")
    raw["curriculum"] |= changes.get("curriculum", {})  # type: ignore[operator]
    with pytest.raises(ConfigError, match=refusal):
        Origin.of(config_from_dict(raw, "test", {}))


def test_options_of_lora_are_a_matter_of_form_where_there_is_some() -> None:
    one, other = small_config(lora={"r": 8}), small_config(lora={"r": 4})
    assert list(unlike_forms(one, other)) == []
    one = small_config(lora={"r": 8}, features={"use_lora": True})
    other = small_config(lora={"r": 4}, features={"use_lora": True})
    assert list(unlike_forms(one, other)) == [("lora.r", 8, 4)]


def test_dropout_is_no_matter_of_form() -> None:
    one, other = small_config(deep_prefix={"dropout": 0.0}), small_config(deep_prefix={"dropout": 0.1, "rank": 4})
    assert [key for key, *_ in unlike_forms(one, other)] == ["deep_prefix.rank"]


@pytest.mark.parametrize(
    ("encoder", "others", "refusal"),
    [
        ({"type": "byte"}, {}, "encoder.companion: only"),
        ({"d_z": 6}, {}, "encoder.companion_d_z: 6 leaves nothing"),
        ({}, {"deep_prefix": {"rank": 4}}, "encoder.companion: .* deep_prefix.rank"),
        ({"companion": None}, {}, "encoder.companion_layers: does nothing"),
        ({"companion_layers": [1, 99]}, {}, "encoder.companion_layers: 99 is more than"),
    ],
)
def test_what_does_not_go_with_a_companion(
    encoder: dict[str, object], others: dict[str, dict[str, object]], refusal: str
) -> None:
    with pytest.raises(Exception, match=refusal):
        small_system(small_config(encoder=WITH | encoder, **others))


def test_widening_adds_zeros_behind_and_touches_nothing_else() -> None:
    plain, wide = small_system(small_config()), system_with()
    state = plain.state_dict()
    out = widened(state, wide.sender.encoder.companion)  # type: ignore[arg-type, union-attr]
    wider = set()
    for stem, group in state.items():
        for key, tensor in group.items():
            if out[stem][key] is not tensor:
                wider.add(key)
                old = tuple(slice(n) for n in tensor.shape)
                assert out[stem][key][old].equal(tensor) and out[stem][key].count_nonzero() == tensor.count_nonzero()
    assert wider == set(READ_LATENTS)
    wide.load_state_dict(out)


def test_a_text_that_is_too_long_for_the_companion_alone_is_refused() -> None:
    system, text = system_with(), small_passages(1)[0].context
    companion = system.sender.encoder.companion
    length = len(companion.tokens(system.sender.prepare(text))[0])  # type: ignore[union-attr]
    for limit in (length, length - 1):
        companion.lm.anatomy = replace(companion.lm.anatomy, max_positions=limit)  # type: ignore[union-attr]
        refused = pytest.raises(
            ModelError, match=rf"encoder\.companion: a text of {length} tokens .* window of {limit}"
        )
        with nullcontext() if limit == length else refused:
            system.sender.prepare(text)
