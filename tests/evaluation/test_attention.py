"""The attention that answers pay to each latent, against what Transformers itself returns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from latentwire.core.names import LATENT
from latentwire.evaluation.answering import encode_items, given_to
from latentwire.evaluation.attention import attention_on_latents
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.files import write_results
from latentwire.evaluation.modes import MODES
from tests.systems import small_config, small_passages, small_system
from tests.tiny import FAMILIES

SMALL = {"latency_samples": 0, "max_new_tokens": 4, "bootstrap": 20, "modes": ["latent", "text"]}


@pytest.mark.parametrize("slots", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_it_is_the_mean_over_layers_heads_and_answer_positions(family: str, slots: bool) -> None:
    features = {"use_lora": True, "use_deep_prefix": slots, "use_prefix": True, "use_latent_adapters": True}
    config = small_config(features=features, model={"dtype": "float32", "receivers": {"a": "x"}})
    system = small_system(config, (family,))
    receiver = system.receivers["a"]
    for gated in receiver.features["latent_adapters"].adapters:  # type: ignore[union-attr]
        torch.nn.init.normal_(gated.out.weight, std=0.3)
    receiver.add_adapter(LATENT)
    (item,) = encode_items(system, small_passages(1), "fp32")
    question = item.passage.questions[0]
    tail, said = receiver.prompt.tail(question.text), receiver.prompt.answer("Talden")
    ids = torch.tensor([tail + said])
    with receiver.using(LATENT):
        context = MODES["latent"].read(receiver, given_to(receiver, [item]))
        known = context.mask.shape[1]
        with receiver.reading(context):
            out = receiver.lm.model(
                input_ids=ids,
                attention_mask=torch.ones(1, known + ids.shape[1]),
                past_key_values=context.cache,
                output_attentions=True,
            )
    first = len(receiver.prompt.head)
    answering = torch.stack(out.attentions)[:, 0, :, len(tail) - 1 : len(tail) + len(said) - 1]
    expected = answering.mean((0, 1, 2))[first : first + item.sent.latents]
    assert expected.std() > 1e-3 and 0.05 < expected.sum() < 0.99

    receiver.lm.model.set_attn_implementation("sdpa")
    found = attention_on_latents(receiver, item, question, "Talden")
    torch.testing.assert_close(torch.tensor(found), expected, atol=2e-5, rtol=1e-3)
    assert receiver.lm.model.config._attn_implementation == "sdpa"
    assert attention_on_latents(receiver, item, question, "Talden") == found  # nothing is left attached


def test_an_evaluation_keeps_it_for_some_questions_and_the_passages_with_their_windows(tmp_path: Path) -> None:
    config = small_config(evaluation=SMALL | {"attention_examples": 3})
    system, passages = small_system(config), small_passages(3)
    results, answers = evaluate(system, passages, config, quiet=True)
    write_results(tmp_path, results, answers)
    kept = [json.loads(line) for line in (tmp_path / "passages.jsonl").read_text().splitlines()]
    assert [row["context"] for row in kept] == [p.context for p in passages]
    for row, passage in zip(kept, passages, strict=True):
        assert "".join(row["context"][first:end] for first, end in row["windows"]) == passage.context
        assert len(row["windows"]) == system.sender.prepare(passage.context).latents > 3
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [row["passage"] for row in rows] == [0, 0, 1, 1, 2, 2]
    for name in system.receivers:
        assert ["attention" in row[name]["latent"] for row in rows] == [True] * 3 + [False] * 3
        assert not any("attention" in row[name]["text"] for row in rows)
        shares = rows[2][name]["latent"]["attention"]
        assert len(shares) == len(kept[1]["windows"]) and 0 < sum(shares) < 1
    assert "attention" not in json.dumps(results["receivers"])


def test_private_latents_are_those_that_the_receiver_reads(tmp_path: Path) -> None:
    config = small_config(
        evaluation=SMALL | {"attention_examples": 1},
        encoder={"type": "byte", "latent_len": 8, "latent_private_len": 2},
    )
    system = small_system(config)
    results, answers = evaluate(system, small_passages(1), config, quiet=True)
    write_results(tmp_path, results, answers)
    (passage,) = [json.loads(line) for line in (tmp_path / "passages.jsonl").read_text().splitlines()]
    row = json.loads((tmp_path / "predictions.jsonl").read_text().splitlines()[0])
    own = len(system.receivers["a"].own or [])
    assert len(passage["windows"]) == len(row["a"]["latent"]["attention"]) == own == 6


def test_none_is_measured_where_none_is_asked_for_or_latents_are_not_read() -> None:
    for changes in ({"attention_examples": 0}, {"modes": ["text"]}):
        config = small_config(evaluation=SMALL | changes, model={"dtype": "float32", "receivers": {"a": "x"}})
        _, answers = evaluate(small_system(config, ("llama",)), small_passages(1), config, quiet=True)
        assert all(a.attention is None for modes in answers.by_mode.values() for row in modes.values() for a in row)
