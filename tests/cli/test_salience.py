"""A run whose sender chooses tokens by what is likely to be asked about: from the start, or from a checkpoint on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentwire.checkpoint.tensors import load_folder
from latentwire.eval import main as eval_main
from latentwire.train import main as train_main
from tests.commands import add_receiver_main, arguments, fails


def words(models: Path, out: Path, **more: object) -> list[str]:
    chosen: dict[str, object] = {
        "encoder_keep": 2,
        "encoder_keep_by": "salience",
        "encoder_keep_from": "text",
        "closed_form_salience_passages": 12,
    }
    return arguments(models, out_dir=out, **(chosen | {"eval_samples": 0, "baselines_max_steps": 0} | more))


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "diagnostics.jsonl").read_text().splitlines()]


def test_it_comes_before_all_else_and_only_once(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = words(models, tmp_path / "run")
    train_main([*flags, "--stages", "slot_tuning"])
    assert "salience: held-out area under the ROC curve" in capsys.readouterr().out
    first = rows_of(tmp_path / "run")[0]
    assert first["stage"] == "salience" and set(first["auc"]) == {"answers", "questions"}
    learned = load_folder(tmp_path / "run" / "stages" / "salience" / "done")["salience"]["weight"]
    assert learned.any()
    train_main(flags)
    assert "salience: done before" in capsys.readouterr().out
    assert [row["stage"] for row in rows_of(tmp_path / "run")].count("salience") == 1
    assert load_folder(tmp_path / "run" / "last")["sender"]["encoder.salience.weight"].float().equal(learned)
    eval_main(["--ckpt", str(tmp_path / "run"), "--samples", "6", "--override", "evaluation.latency_samples=0"])
    passages = [json.loads(line) for line in (tmp_path / "run" / "passages.jsonl").read_text().splitlines()]
    for passage in passages:
        for (first_char, end), read in zip(passage["windows"], passage["read"], strict=True):
            assert all(first_char <= a and b <= end for a, b in read)


def test_a_checkpoint_that_chose_otherwise_goes_on_with_it(models: Path, tmp_path: Path) -> None:
    by_surprisal: dict[str, object] = {"encoder_keep": 2, "eval_samples": 0, "baselines_max_steps": 0}
    train_main(arguments(models, out_dir=tmp_path / "old", **by_surprisal))
    train_main([*words(models, tmp_path / "new", init_from=tmp_path / "old"), "--stages", "end_to_end"])
    assert rows_of(tmp_path / "new")[0]["stage"] == "salience"
    assert load_folder(tmp_path / "new" / "last")["sender"]["encoder.salience.weight"].any()
    train_main([*words(models, tmp_path / "more", init_from=tmp_path / "new"), "--stages", "end_to_end"])
    assert rows_of(tmp_path / "more")[0]["stage"] == "end_to_end"  # it was known
    add_receiver_main(
        [
            *(
                "--ckpt",
                str(tmp_path / "new"),
                "--name",
                "gemma",
                "--model",
                str(models / "gemma3"),
            ),
            *("--steps", "1", "--out_dir", str(tmp_path / "added")),
        ]
    )
    sender = load_folder(tmp_path / "added" / "last")["sender"]
    assert all(sender[key].equal(tensor) for key, tensor in load_folder(tmp_path / "new" / "last")["sender"].items())


def test_a_checkpoint_goes_on_with_smaller_windows_and_shorter_questions(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few: dict[str, object] = {"encoder_keep": 2, "eval_samples": 6, "baselines_max_steps": 1, "window": 6}
    other = {"window": 3.5, "anchor_question": "\n{question}\n"}
    train_main(arguments(models, out_dir=tmp_path / "old", **few))
    train_main(arguments(models, out_dir=tmp_path / "new", **(few | other), init_from=tmp_path / "old"))
    before, after = (json.loads((tmp_path / run / "eval.json").read_text())["receivers"] for run in ("old", "new"))
    for name, receiver in after.items():
        assert receiver["compression"] < before[name]["compression"]
        assert receiver["positions"]["text"] < before[name]["positions"]["text"]
    config = json.loads((tmp_path / "new" / "last" / "checkpoint.json").read_text())["config"]
    assert config["encoder"]["window"] == 3.5
    one = next(iter(after))
    flags = arguments(models, out_dir=tmp_path / "one", **few, init_from=tmp_path / "new")
    refusal = fails(train_main, [*flags, "--override", f'curriculum.train_only=["{one}"]'], capsys)
    assert "was trained with anchor.question = '\\n{question}\\n', not" in refusal


def test_too_few_passages_are_refused(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refusal = fails(train_main, words(models, tmp_path / "run", samples=1), capsys)
    assert "encoder.keep_by: salience is learned from passages with questions, and of 1 " in refusal
    assert not (tmp_path / "run").exists()
