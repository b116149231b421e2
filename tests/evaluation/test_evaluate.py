from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from latentwire.core.errors import DataError, ModelError
from latentwire.evaluation.evaluate import evaluate, print_table, write_results
from latentwire.evaluation.modes import MODES
from tests.systems import small_config, small_passages, small_system

SMALL = {"latency_samples": 1, "max_new_tokens": 4, "bootstrap": 50, "batch_size": 5}


@pytest.mark.parametrize("slots", [True, False])
def test_everything_of_the_schema_is_measured_and_written(tmp_path: Path, slots: bool, capsys: object) -> None:
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
    read = json.loads((tmp_path / "eval.json").read_text())
    assert read["schema"] == 1 and read["samples"] == 8 and read["passages"] == 4
    for name in ("a", "b"):
        own = read["receivers"][name]
        for mode in MODES:
            m = own[mode]
            assert (
                m["f1_ci"][0] <= m["f1"] <= m["f1_ci"][1] and 0 <= m["em"] <= m["f1"] + 1e-9 and m["nll_per_token"] > 0
            )
        for key in ("f1", "em", "nll_per_token"):
            assert own["embedding_replay"][key] == pytest.approx(own["text"][key], rel=1e-4)
        assert set(own["latent"]["latency_s"]) == {"encode", "prefill", "first_token", "answer"}
        assert own["compression"] == pytest.approx(own["positions"]["text"] / own["positions"]["latent"])
        assert own["compression"] > 1.5
        assert own["bytes"]["zstd"] > 0 and own["bytes"]["wire"] > 14
    assert {"agreement", "oracle_f1", "f1"} <= set(read["joint"])
    assert read["latent"]["f1"] == pytest.approx(sum(read["receivers"][n]["latent"]["f1"] for n in "ab") / 2)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and set(rows[0]["a"]) == set(MODES)
    assert len(list(csv.reader((tmp_path / "eval.csv").open()))) == 1 + 2 * len(MODES)


def test_frozen_receivers_have_no_tuned_text() -> None:
    config = small_config(evaluation=SMALL | {"latency_samples": 0})
    results, _ = evaluate(small_system(config, ("llama",)), small_passages(2), config, quiet=True)
    assert results["receivers"]["a"]["text_tuned"] is None and results["text_tuned"] is None
    assert results["joint"] is None and results["receivers"]["a"]["token_budget"]


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
    write_results(tmp_path, results, answers)
    print_table(results)
    for receiver in results["receivers"].values():
        assert {mode for mode in MODES if receiver[mode]} == {"latent", "no_context"}
    assert results["text"] is None and results["latent"]["f1_ci"] and results["joint"]
