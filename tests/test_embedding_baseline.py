"""The embedding baselines: raw (embedding_replay), anchor (embedding_anchor) and adapter (the embedding reader).

Raw embeddings must equal the text, or nothing that is read through `inputs_embeds` could be trusted.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentwire.core.errors import ModelError
from latentwire.evaluation.answering import answer_all, encode_items
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.modes import MODES, Given, modes_for
from latentwire.train import main as train_main
from latentwire.training.loop import Trainer
from latentwire.training.stages.closed_form import fit
from latentwire.training.stages.end_to_end import EndToEnd
from tests import ROOT
from tests.integration.test_smoke_configs import training_of
from tests.systems import small_config, small_passages, small_system
from tests.tiny import FAMILIES

ANCHOR = "Read this: "


def config(**sections: dict):
    small = {"modes": ["text", "embedding_replay", "embedding_anchor", "latent"], "max_new_tokens": 6}
    return small_config(
        model={"dtype": "float32", "receivers": {"a": "x"}},
        features={"use_deep_prefix": False},
        evaluation=small | {"latency_samples": 0, "bootstrap": 50, "anchor_text": ANCHOR},
        **sections,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_raw_embeddings_equal_the_text(family: str) -> None:
    system = small_system(config(), (family,))
    items = encode_items(system, small_passages(4), "fp16")
    answers = answer_all(system, items, modes_for, batch_size=5, max_new_tokens=6).by_mode["a"]
    text, raw, anchored = (answers[m] for m in ("text", "embedding_replay", "embedding_anchor"))
    assert [a.prediction for a in raw] == [a.prediction for a in text]
    torch.testing.assert_close([a.nll for a in raw], [a.nll for a in text], rtol=1e-4, atol=1e-4)
    assert [a.first_correct for a in raw] == [a.first_correct for a in text]
    assert all(abs(a.nll - b.nll) > 1e-3 for a, b in zip(anchored, text, strict=True))  # the anchor is read


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_anchored_embeddings_equal_the_anchor_text_and_the_passage(family: str) -> None:
    system = small_system(config(), (family,))
    receiver = system.receivers["a"]
    texts = [system.prepare(p)[1]["a"] for p in small_passages(2)]
    given = Given(texts, ())
    anchor = receiver.lm.tokenizer(ANCHOR, add_special_tokens=False)["input_ids"]
    written = receiver.read_text([t.ids[: t.head_len] + anchor + t.ids[t.head_len :] for t in texts])
    questions = [(receiver.prompt.tail("Where?"), receiver.prompt.gold("Talden"))] * 2
    expected = receiver.score(written, questions).nll
    found = receiver.score(MODES["embedding_anchor"].read(receiver, given), questions).nll
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("short", [0, 1])
@pytest.mark.parametrize("mode", ["embedding_anchor", "text"])
def test_the_anchor_has_to_fit_the_window_where_it_is_read(mode: str, short: int) -> None:
    evaluation = {"modes": [mode, "latent"], "anchor_text": ANCHOR}
    system = small_system(small_config(features={"use_deep_prefix": False}, evaluation=evaluation), ("llama",))
    lm, passage = system.receivers["a"].lm, small_passages(1)[0]
    anchor = len(lm.tokenizer(ANCHOR, add_special_tokens=False)["input_ids"]) if mode == "embedding_anchor" else 0
    positions = system.prepare(passage)[1]["a"].positions + anchor
    lm.anatomy = replace(lm.anatomy, max_positions=positions - short)
    with pytest.raises(ModelError, match=rf"receiver 'a': {positions} tokens") if short else nullcontext():
        system.prepare_to_ask(passage)


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_the_adapter_learns_to_stand_for_the_text(family: str, tmp_path: Path) -> None:
    rates = {"lr": 3e-3, "lr_generator": 3e-3, "lr_encoder": 1e-3, "warmup_steps": 2, "batch_size": 3}
    system = small_system(config(optimizer=rates), (family,))
    passages = small_passages(6)
    prepared = [system.prepare(p) for p in passages]
    fit(system, prepared * 2, held_out=2, ridge=0.1)

    def nll() -> float:
        return evaluate(system, passages, system.config, quiet=True)[0]["receivers"]["a"]["latent"]["nll_per_token"]

    before = nll()
    Trainer(EndToEnd(system, prepared, system.config), system.config, tmp_path, 80).fit()
    assert nll() < 0.7 * before


def test_the_configuration_measures_all_three(models: Path, tmp_path: Path) -> None:
    path = ROOT / "configs" / "baseline" / "embedding_baselines.json"
    results = train_main(training_of(path, models, tmp_path / "run"))["evaluation"]
    for own in results["receivers"].values():
        for key in ("f1", "em", "first_token_acc", "nll_per_token"):
            assert own["embedding_replay"][key] == pytest.approx(own["text"][key], rel=1e-4)
        assert own["embedding_anchor"]["nll_per_token"] != pytest.approx(own["text"]["nll_per_token"], rel=1e-4)
        assert own["latent"]["nll_per_token"] > 0 and not own["latent"]["tuned"]
