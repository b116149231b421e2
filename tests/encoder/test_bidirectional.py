"""A sender whose tokens see those behind them (encoder.bidirectional)."""

from __future__ import annotations

import pytest
import torch

from latentwire.backbone.anatomy import decoder_layers
from latentwire.config.load import config_from_dict
from latentwire.core.errors import ConfigError
from latentwire.model.system import LatentWire
from tests.features.test_matrix import dead_parameters
from tests.systems import latents_of, small_config, small_passages, small_system
from tests.tiny import tiny_lm

TEXTS = [p.context for p in small_passages(3)] + ["Mira sells lamps."]
OTHER_END = [text[:-1] + "!" for text in TEXTS]


def system_with(on: bool = True, keep: int | None = None, lora: bool = False, **encoder: object) -> LatentWire:
    features = {"use_sender_lora": lora}
    system = small_system(small_config(encoder={"bidirectional": on, "keep": keep} | encoder, features=features))
    torch.manual_seed(4)
    with torch.no_grad():
        for p in system.sender.lora.trainable_parameters() if system.sender.lora else []:
            p.add_(torch.randn_like(p) * 0.3)
    return system


def reach(bidirectional: bool, window: int | None) -> list[list[bool]]:
    """Which states (rows) of the first layer change with which tokens (columns)."""
    lm = tiny_lm("llama") if window is None else tiny_lm("gemma3", sliding_window=window)
    lm.truncate(1)
    ids = torch.arange(5, 13).repeat(9, 1)
    ids[range(8), range(8)] = 40
    states = lm.final_states(ids, torch.ones_like(ids), bidirectional=bidirectional)
    return ((states[:8] - states[8]).abs().amax(-1) > 1e-6).T.tolist()


@pytest.mark.parametrize("window", [None, 3])
@torch.no_grad()
def test_tokens_see_those_behind_them_as_far_as_those_before(window: int | None) -> None:
    far = window or 8
    for on in (False, True):
        assert reach(on, window) == [
            [i == j or ((on or j < i) and abs(i - j) < far) for j in range(8)] for i in range(8)
        ]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("keep", [None, 2])
def test_a_first_latent_knows_the_end_of_its_text(keep: int | None, lora: bool) -> None:
    for on in (False, True):
        system = system_with(on, keep, lora)
        for row, other in zip(latents_of(system, TEXTS), latents_of(system, OTHER_END), strict=True):
            assert torch.allclose(row[0], other[0], atol=1e-6) != on


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("keep", [None, 2])
def test_padding_does_not_change_what_it_makes(keep: int | None, lora: bool) -> None:
    system = system_with(keep=keep, lora=lora)
    for text, row in zip(TEXTS, latents_of(system, TEXTS), strict=True):
        torch.testing.assert_close(latents_of(system, [text])[0], row, atol=1e-5, rtol=1e-4)


def test_what_is_hard_to_predict_is_measured_as_ever() -> None:
    system, plain = system_with(keep=2), system_with(False, keep=2)
    texts = [system.sender.prepare(text) for text in TEXTS]
    system.sender.features(texts)
    assert [text.chosen for text in texts] == [plain.sender.prepare(text).chosen for text in TEXTS]


@pytest.mark.parametrize("lora", [False, True])
def test_no_more_layers_run_than_are_read_once_tokens_are_chosen(lora: bool) -> None:
    system = system_with(keep=2, lora=lora, layers=[0, 1])
    texts, ran = [system.sender.prepare(text) for text in TEXTS], set[int]()
    assert all(text.chosen for text in texts)
    for index, block in enumerate(decoder_layers(system.sender.encoder.lm.model)):  # type: ignore[union-attr, arg-type]
        block.register_forward_pre_hook(lambda *_, index=index: ran.add(index))
    system.sender.latents_of(texts)
    assert ran == {0}


def test_every_tensor_is_trained() -> None:
    assert not list(dead_parameters(system_with(keep=2, lora=True), steps=4))


@pytest.mark.parametrize(
    ("encoder", "match"),
    [({"type": "stq"}, "only encoder.type = 'backbone'"), ({"layers": [0]}, "the embedding alone")],
)
def test_where_it_could_do_nothing_it_is_refused(encoder: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=f"bidirectional: .*{match}"):
        config_from_dict({"encoder": encoder | {"bidirectional": True}}, "command line", {})
