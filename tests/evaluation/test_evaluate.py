from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire.config import Config
from latentwire.core.errors import DataError, ModelError
from latentwire.core.intervals import bootstrap_ci
from latentwire.core.json_files import write_json
from latentwire.core.names import LATENT, PREDICTION_KEYS, TEXT, TOKEN_BUDGET
from latentwire.data import data_fingerprint
from latentwire.evaluation import efficiency
from latentwire.evaluation import evaluate as evaluation
from latentwire.evaluation.answering import Answer, Item, answer_batch, encode_items, given_to, rescore
from latentwire.evaluation.efficiency import message_bytes
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.files import write_results
from latentwire.evaluation.lossless import lm_bytes
from latentwire.evaluation.modes import MODES
from latentwire.evaluation.rates import FLOAT, Rates, rate, sent_again
from latentwire.evaluation.run import known_results
from latentwire.evaluation.table import print_table
from latentwire.model.pretrained import save_checkpoint
from latentwire.training.stages.slot_tuning import SlotTuning
from tests.features.test_matrix import system_with
from tests.losses.test_objective import shake
from tests.systems import small_config, small_passages, small_system
from tests.tiny import FAMILIES, save_tiny, tiny_lm

SMALL = {"latency_samples": 1, "max_new_tokens": 4, "bootstrap": 50, "batch_size": 5}


@pytest.mark.parametrize("slots", [True, False])
def test_everything_of_the_schema_is_measured_and_written(
    tmp_path: Path, slots: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(
        evaluation=SMALL | {"modes": list(MODES)},
        features={"use_lora": True, "use_deep_prefix": slots},
        model={"dtype": "float32", "receivers": {"a": "x", "b": "y"}},
    )
    system = small_system(config)
    for receiver in system.receivers.values():
        for adapter in ("latent", "text", "token_budget"):
            receiver.add_adapter(adapter)
    results, answers = evaluate(system, small_passages(4), config, quiet=True)
    write_results(tmp_path, results, answers)
    print_table(results)
    shown = " ".join(capsys.readouterr().out.split())
    read = json.loads((tmp_path / "eval.json").read_text())
    assert read["schema"] == 1 and read["samples"] == 8 and read["passages"] == 4
    for name in ("a", "b"):
        own = read["receivers"][name]
        for mode in MODES:
            m = own[mode]
            assert 0 <= m["em"] <= m["f1"] + 1e-9 and m["nll_per_token"] > 0
            for key in ("f1", "em", "first_token_acc", "nll_per_token"):
                assert m[f"{key}_ci"][0] <= m[key] <= m[f"{key}_ci"][1]
        for key in ("f1", "em", "nll_per_token"):
            assert own["embedding_replay"][key] == pytest.approx(own["text"][key], rel=1e-4)
        assert set(own["latent"]["latency_s"]) == {"encode", "prefill", "first_token", "answer"}
        assert own["compression"] == pytest.approx(own["positions"]["text"] / own["positions"]["latent"])
        assert own["compression"] > 1.5
        size = own["bytes"]
        assert size["zstd"] > 0 and size["wire"] > 14 and size["lm_bytes"] is None
        assert own["byte_ratios"]["utf8"] == pytest.approx(size["wire"] / size["utf8"])
        assert own["byte_ratios"]["lm_bytes"] is None
        assert 16 < own["bits_per_dimension"] < 20
        assert own["bits_per_latent"] == pytest.approx(16 * own["bits_per_dimension"])
        share, gain = own["kept"], own["gained"]
        assert share["of"] == "text_tuned" and gain["over"] == "token_budget"
        ratio = own["latent"]["nll_per_token"] / own["text_tuned"]["nll_per_token"]
        assert share["nll_per_token"] == pytest.approx(ratio)
        assert share["nll_per_token_ci"][0] <= ratio <= share["nll_per_token_ci"][1]
        assert gain["f1"] == pytest.approx(own["latent"]["f1"] - own["token_budget"]["f1"])
        assert f"{name}: of text_tuned, latents keep" in shown
    assert {"agreement", "oracle_f1", "f1"} <= set(read["joint"])
    best = max(read["receivers"][n]["latent"]["f1"] for n in "ab")
    assert read["joint"]["gained"]["f1"] == pytest.approx(read["joint"]["f1"] - best)
    assert read["latent"]["f1"] == pytest.approx(sum(read["receivers"][n]["latent"]["f1"] for n in "ab") / 2)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert all(row.keys() == {*PREDICTION_KEYS, *results["receivers"]} for row in rows)
    assert len(rows) == 8 and set(rows[0]["a"]) == set(MODES)
    assert [row["passage"] for row in rows] == [0, 0, 1, 1, 2, 2, 3, 3]
    table = {(row["receiver"], row["mode"]): row for row in csv.DictReader((tmp_path / "eval.csv").open())}
    assert len(table) == 2 * len(MODES)
    saved = {mode: table["a", mode]["compression"] for mode in ("text", "latent", "token_budget", "no_context")}
    whole = str(read["receivers"]["a"]["compression"])
    assert saved == {"text": "1", "latent": whole, "token_budget": whole, "no_context": ""}


def test_frozen_receivers_have_no_tuned_text() -> None:
    config = small_config(evaluation=SMALL | {"latency_samples": 0})
    results, _ = evaluate(small_system(config, ("llama",)), small_passages(2), config, quiet=True)
    assert results["receivers"]["a"]["text_tuned"] is None and results["text_tuned"] is None
    own = results["receivers"]["a"]
    assert results["joint"] is None and own["token_budget"]
    assert own["kept"]["of"] == "text"  # which is what they have instead


def test_latents_read_with_lora_are_not_compared_with_text_read_without() -> None:
    config = small_config(features={"use_lora": True}, evaluation=SMALL | {"latency_samples": 0})
    system = small_system(config, ("llama",))
    system.receivers["a"].add_adapter(LATENT)
    own = evaluate(system, small_passages(2), config, quiet=True)[0]["receivers"]["a"]
    assert own["kept"] is None and own["gained"] is None
    for adapter in (TEXT, TOKEN_BUDGET):
        system.receivers["a"].add_adapter(adapter)
    own = evaluate(system, small_passages(2), config, quiet=True)[0]["receivers"]["a"]
    assert own["kept"]["of"] == "text_tuned" and own["gained"]["over"] == "token_budget"


def test_nothing_to_evaluate_and_a_passage_longer_than_the_window() -> None:
    config = small_config(evaluation=SMALL)
    with pytest.raises(DataError, match="no question"):
        evaluate(small_system(config), [], config)
    from latentwire.encoder.backbone import BackboneEncoder
    from latentwire.model.sender import Sender
    from tests.tiny import tiny_lm

    sender = Sender(BackboneEncoder(tiny_lm("llama", max_position_embeddings=16), config), config)
    with pytest.raises(ModelError, match="longer than the sender's window of 16"):
        sender.prepare(small_passages(1)[0].context)


def test_only_the_modes_that_are_asked_for_are_measured(tmp_path: Path) -> None:
    config = small_config(evaluation=SMALL | {"modes": ["latent", "no_context"]})
    results, answers = evaluate(small_system(config), small_passages(2), config, quiet=True)
    results["receivers"]["a"]["latent"] |= {"f1": 0.5, "f1_ci": [0.25, 0.75]}
    write_results(tmp_path, results, answers)
    row = next(csv.DictReader((tmp_path / "eval.csv").open()))
    assert [row[key] for key in ("mode", "f1", "f1_low", "f1_high")] == ["latent", "0.5", "0.25", "0.75"]
    print_table(results)
    for receiver in results["receivers"].values():
        assert {mode for mode in MODES if receiver[mode]} == {"latent", "no_context"}
    assert results["text"] is None and results["latent"]["f1_ci"] and results["joint"]


def test_answers_may_be_the_consensus_of_several_candidates() -> None:
    found = {}
    for count in (1, 4):
        own = SMALL | {"modes": ["text", "latent"], "candidates": count, "latency_samples": 0}
        config = small_config(evaluation=own)
        system = small_system(config)
        results, answers = evaluate(system, small_passages(3), config, quiet=True)
        (row, _) = rate(system, answers.items, "fp16", config, None)
        assert row["f1"] == results["receivers"]["a"]["latent"]["f1"]
        found[count] = answers.by_mode["a"]
        known = answered(answers.items, found[count]["latent"])
        assert next(rate(system, known, "fp16", config, None))["em"] == 1
    for mode in ("text", "latent"):
        greedy, chosen = found[1][mode], found[4][mode]
        assert [a.prediction for a in greedy] != [a.prediction for a in chosen]
        assert [(a.nll, a.first_correct) for a in greedy] == [(a.nll, a.first_correct) for a in chosen]


def test_latents_are_measured_as_the_codec_leaves_them_and_rates_are_of_real_bytes(tmp_path: Path) -> None:
    """Only what is read from latents depends on the codec, and every byte of a message is counted."""
    save_tiny("llama", tmp_path / "llama")
    results = {}
    for codec in ("fp32", "int4:group=0"):
        config = small_config(
            evaluation=SMALL | {"codec": codec, "latency_samples": 0, "lm_bytes": True},
            encoder={"model": str(tmp_path / "llama")},
        )
        results[codec], answers = evaluate(small_system(config), small_passages(3), config, quiet=True)
        write_results(tmp_path / codec, results[codec], answers)
        print_table(results[codec])
    exact, coarse = (r["receivers"]["b"] for r in results.values())
    assert exact["latent"]["nll_per_token"] != coarse["latent"]["nll_per_token"]
    assert exact["text"]["nll_per_token"] == coarse["text"]["nll_per_token"]
    lm, texts = tiny_lm("llama"), [p.context for p in small_passages(3)]
    count = sum(-(-len(lm.tokenize_with_offsets(text)[0]) // 4) for text in texts)
    around = 4 + 1 + 1 + 2 + (1 + 1 + 1 + 1 + 1 + 2) + 4  # no sender fingerprint: the system is not from a checkpoint
    assert exact["bytes"]["wire"] == pytest.approx(around + 4 * 16 * count / 3)
    assert coarse["bytes"]["wire"] == pytest.approx(around - 2 + 3 + (1 + 16 / 2) * count / 3)
    assert exact["bytes"]["lm_bytes"] == sum(lm_bytes(lm, texts)) / 3
    for own in (exact, coarse):
        assert own["byte_ratios"]["lm_bytes"] == pytest.approx(own["bytes"]["wire"] / own["bytes"]["lm_bytes"])
    (row,) = [r for r in csv.DictReader((tmp_path / "fp32" / "eval.csv").open()) if r["mode"] == "latent"][1:]
    assert float(row["bits_per_dimension"]) == exact["bits_per_dimension"]
    assert float(row["wire_to_lm_bytes"]) == exact["byte_ratios"]["lm_bytes"]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_lossless_limit_is_the_log_loss_of_the_whole_model(family: str) -> None:
    lm, texts = tiny_lm(family), ["The boat of Orlin is green.", "Mira", "A long message is compressed. " * 6]
    expected = []
    for text in texts:
        ids = torch.tensor([[lm.bos_id, *lm.tokenize_with_offsets(text)[0]]])
        loss = lm.model(ids, labels=ids).loss  # the mean in nats over all tokens but the first
        expected.append(math.ceil(float(loss) * (ids.shape[1] - 1) / math.log(2) / 8))
    assert lm_bytes(lm, texts) == expected
    assert lm_bytes(tiny_lm(family, seed=1), texts) != expected


@torch.no_grad()
def test_the_likelihood_is_that_of_the_answer_alone_in_nats_a_token() -> None:
    """By hand, one answer at a time without padding; what ends an answer is not scored."""
    config = small_config(evaluation=SMALL | {"latency_samples": 0, "modes": ["text"]})
    system, passages = small_system(config, ("llama",)), small_passages(2)
    receiver = system.receivers["a"]
    nats, tokens = [], []
    for passage in passages:
        for question in passage.questions:
            answer = receiver.prompt.gold(question.answers[0])
            before = [*system.prepare(passage)[1]["a"].ids, *receiver.prompt.tail(question.text)]
            logits = receiver.lm.model(torch.tensor([[*before, *answer]])).logits[0, len(before) - 1 : -1].float()
            nats.append(float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")))
            tokens.append(len(answer))
            assert receiver.prompt.answer(question.answers[0])[: len(answer)] == answer
    results, _ = evaluate(system, passages, config, quiet=True)
    assert results["receivers"]["a"]["text"]["nll_per_token"] == pytest.approx(sum(nats) / sum(tokens), rel=1e-4)
    assert len(set(tokens)) > 1  # else a mean of ratios would be the same


def test_each_mode_is_read_with_its_own_adapter() -> None:
    system = small_system(small_config(features={"use_lora": True}), ("llama",))
    receiver, items = system.receivers["a"], encode_items(system, small_passages(1), "fp16")

    def nll() -> dict[str, float]:
        return {name: answer_batch(receiver, mode, items, 1)[0].nll for name, mode in MODES.items()}

    for name, read in ((LATENT, {"latent"}), (TEXT, {"text_tuned", "no_context"}), (TOKEN_BUDGET, {"token_budget"})):
        before = nll()
        shake(receiver, name)
        moved = {mode for mode, value in nll().items() if value != pytest.approx(before[mode], rel=1e-5)}
        assert moved == read


def test_the_joint_answer_is_the_one_that_all_receivers_together_find_likeliest() -> None:
    system = small_system(small_config())
    receivers, items = list(system.receivers.values()), encode_items(system, small_passages(3), "fp16")
    # Either receiver alone would take the other one of the second or third pair.
    candidates = [
        ["Talden", "red lamps", "Orlin", "", "on the hill", ""],
        ["the river", "Veyra", "Mira", "3", "Edda", ""],
    ]
    questions = [question for item in items for question in item.passage.questions]
    wanted = []
    for i, question in enumerate(questions):
        likely = {}
        for texts in candidates:
            total = 0.0
            for receiver in receivers:
                context = MODES["latent"].read(receiver, given_to(receiver, [items[i // 2]]))
                pair = (receiver.prompt.tail(question.text), receiver.prompt.answer(texts[i]))
                total -= float(receiver.score(context, [pair]).nll)
            likely[texts[i]] = total if texts[i] else -1e9
        wanted.append(max(likely, key=likely.__getitem__))
    assert rescore(receivers, items, candidates) == wanted
    assert {texts[i] == wanted[i] for i in (0, 1, 2, 4) for texts in candidates[:1]} == {True, False}


def test_token_ids_take_the_bits_of_their_vocabulary() -> None:
    system = small_system(small_config())
    items = encode_items(system, small_passages(2), "fp16")
    for receiver in system.receivers.values():
        bits = (len(receiver.lm.tokenizer) - 1).bit_length()
        sizes = [-(-bits * len(receiver.lm.tokenize_with_offsets(p.context)[0]) // 8) for p in small_passages(2)]
        assert message_bytes(receiver, items, None)["packed_ids"] == sum(sizes) / 2


def test_the_token_budget_has_the_positions_that_features_add() -> None:
    system = system_with("llama", "prefix", lora=True)
    receiver, items = system.receivers["a"], encode_items(system, small_passages(1), "fp16")
    latent, budget = (answer_batch(receiver, MODES[name], items, 1)[0].positions for name in ("latent", "token_budget"))
    assert latent == budget
    text = items[0].texts["a"]
    tuning = SlotTuning(receiver, [text], system.config, TOKEN_BUDGET)
    assert len(tuning.row(text)) == text.head_len + text.latents + receiver.extra_positions


def test_positions_are_those_of_a_mean_question() -> None:
    system = system_with("llama", "prefix", lora=True)
    receiver, items = system.receivers["a"], encode_items(system, small_passages(3), "fp16")
    assert receiver.extra_positions > 0
    found = efficiency.positions(receiver, items)
    for mode, mean in found.items():
        taken = [answer.positions for answer in answer_batch(receiver, MODES[mode], items, 1)]
        assert mean == pytest.approx(sum(taken) / len(taken))


def test_a_message_is_timed_from_its_bytes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(evaluation=SMALL)
    system, timing, read = small_system(config, ("llama",)), [], []
    receiver, items = system.receivers["a"], encode_items(system, small_passages(1), "fp16")

    def timed(call: Callable[[], Any]) -> tuple[Any, float]:
        timing.append(True)
        out = call()
        timing.pop()
        return out, 0.0

    monkeypatch.setattr(efficiency, "timed", timed)
    monkeypatch.setattr(efficiency, "given_to", lambda *given: (read.append(bool(timing)), given_to(*given))[1])
    for mode, within in (("latent", True), ("text", False)):
        read.clear()
        efficiency.latency(system, receiver, MODES[mode], items, config.evaluation)
        assert set(read) == {within}


def test_what_is_timed_is_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Medians over questions, of which the first one is asked once before, untimed."""
    config = small_config(evaluation=SMALL | {"codec": "int8", "candidates": 3, "max_new_tokens": 5})
    system, passages = small_system(config, ("llama",)), small_passages(3)
    receiver, items = system.receivers["a"], encode_items(system, passages, "int8")
    made, sent, encode = [], [], system.sender.encode
    seconds = iter([1e3] * 4 + [1.0, 20.0, 3.0, 40.0] + [5.0, 60.0, 7.0, 80.0] + [3.0, 40.0, 5.0, 60.0])
    monkeypatch.setattr(efficiency, "timed", lambda call: (call(), next(seconds)))
    monkeypatch.setattr(receiver, "generate", lambda context, tails, new, candidates: made.append((new, candidates)))
    monkeypatch.setattr(
        system.sender, "encode", lambda text, codec: (sent.append((text, codec)), encode(text, codec))[1]
    )
    found = efficiency.latency(system, receiver, MODES["latent"], items, config.evaluation)
    assert found == {"encode": 3.0, "prefill": 40.0, "first_token": 5.0, "answer": 60.0}
    assert made == [(1, 1), (5, 3)] * 4 and next(seconds, None) is None
    assert sent == [(passages[i].context, "int8") for i in (0, 0, 1, 2)]


def answered(items: Sequence[Item], answers: Sequence[Answer]) -> list[Item]:
    """Items on whose questions these very answers are right, too."""
    given, out = iter(answers), []
    for item in items:
        asked = [replace(q, answers=(*q.answers, next(given).prediction)) for q in item.passage.questions]
        out.append(replace(item, passage=replace(item.passage, questions=tuple(asked))))
    return out


def test_an_evaluation_has_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals draw whole passages, as often as asked; answers are as long, and so many questions are timed."""
    own = SMALL | {"modes": ["text", "latent"], "latency_samples": 2, "max_new_tokens": 3, "attention_examples": 0}
    config = small_config(evaluation=own)
    system, timed, longest = small_system(config, ("llama",)), [], []
    answers_of = evaluation.answer_all
    monkeypatch.setattr(
        evaluation, "latency", lambda system, receiver, mode, items, own: timed.append((mode.name, len(items)))
    )
    monkeypatch.setattr(
        evaluation,
        "answer_all",
        lambda *given, **more: (longest.append(more["max_new_tokens"]), answers_of(*given, **more))[1],
    )
    results, answers = evaluate(system, small_passages(4), config, quiet=True)
    for mode, rows in answers.by_mode["a"].items():
        nll, tokens = [a.nll for a in rows], [a.tokens for a in rows]
        interval = bootstrap_ci(nll, answers.clusters, tokens, resamples=50)
        assert results["receivers"]["a"][mode]["nll_per_token_ci"] == list(interval)
    assert timed == [("text", 2), ("latent", 2)] and longest == [3]
    rows = answers.by_mode["a"]["latent"]
    known = [*answered(answers.items[:2], rows), *answers.items[2:]]
    (row,) = rate(system, known, "fp16", config, None)
    interval = bootstrap_ci([1.0] * 4 + [a.em for a in rows[4:]], answers.clusters, resamples=50)
    assert row["em_ci"] == list(interval)


def test_rates_are_of_what_the_sender_itself_would_send() -> None:
    system, passages = small_system(small_config(), ("llama",)), small_passages(2)
    system.sender.fingerprint = b"a sender"
    again = sent_again(system, encode_items(system, passages, FLOAT), "int8")
    assert [item.message for item in again] == [system.sender.encode(p.context, "int8").to_bytes() for p in passages]


def test_rates_are_known_by_the_questions_themselves_not_by_how_many_they_are(tmp_path: Path) -> None:
    config = small_config()
    save_checkpoint(tmp_path, small_system(config, ("llama",)))
    first, second = small_passages(2)
    one, same, other = (
        Rates(tmp_path / "rates.json", tmp_path, config, [passage], False).same for passage in (first, first, second)
    )
    assert one == same and one["made_with"] != other["made_with"] and one["samples"] == other["samples"]
    lossless = Rates(tmp_path / "rates.json", tmp_path, config, [first], True).same  # rows have one column more
    assert one["made_with"] != lossless["made_with"]


def test_results_are_known_by_all_that_they_depend_on(tmp_path: Path) -> None:
    passages = small_passages(2)

    def config(**evaluation: Any) -> Config:
        return small_config(evaluation=SMALL | evaluation)

    def made(config: Config) -> dict[str, Any]:
        manifest = {"config": config.model_dump(mode="json"), "checkpoint": {"reader": "1"}}
        return {"receivers": {"a": {}, "b": {}}, "manifest": manifest | {"data": data_fingerprint(passages)}}

    def known(own: Config, names: str = "ab", file: str = "1", count: int = 2) -> Any:
        return known_results(tmp_path / "eval.json", own, list(names), {"reader": file}, passages[:count])

    assert known(config()) is None
    write_json(tmp_path / "eval.json", made(config(rivals=["llmlingua"])))
    assert known(config()) == known(config(rivals=["llmlingua"])) == made(config(rivals=["llmlingua"]))
    others = [known(config(rivals=["kvpress"])), known(config(max_new_tokens=5))]
    others += [known(config(), "a"), known(config(), file="2"), known(config(), count=1)]
    assert others == [None] * 5


def test_a_question_and_its_answer_have_to_fit_before_anything_is_answered() -> None:
    system, passages = small_system(small_config(), ("llama",)), small_passages(2)
    receiver, texts = system.receivers["a"], [system.prepare(p)[1]["a"] for p in passages]
    needed = max(len(t.ids) + max(len(tail) + len(answer) for tail, answer in t.questions) for t in texts)
    for left, fits in ((0, nullcontext()), (-1, pytest.raises(ModelError, match="receiver 'a': "))):
        receiver.lm.anatomy = replace(receiver.lm.anatomy, max_positions=needed + left)
        with fits:
            encode_items(system, passages, "fp16")
