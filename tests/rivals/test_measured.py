"""Rivals in training, in eval.json and in the table: only where they are asked for."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest

from latentwire.core.errors import ConfigError
from latentwire.core.json_files import write_json
from latentwire.eval import main as eval_main
from latentwire.evaluation.modes import MODES, RIVALS
from latentwire.train import main as train_main
from tests.commands import arguments
from tests.systems import saved_run


def test_a_package_that_is_missing_is_named_before_anything_is_done(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kvpress", None)
    with pytest.raises(
        ConfigError, match=r"evaluation.rivals: the package kvpress cannot be imported .*docs/rivals.md"
    ):
        train_main(arguments(models, out_dir=tmp_path / "run", eval_rivals="kvpress"))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_was_made_with_rivals_needs_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"bootstrap": 20, "max_new_tokens": 2, "latency_samples": 0, "modes": ["latent"]}
    run = saved_run(tmp_path, evaluation=few | {"rivals": ["kvpress"]})
    monkeypatch.setitem(sys.modules, "kvpress", None)
    words = ["--ckpt", str(run), "--dataset", "facts", "--samples", "2", "--quiet"]
    results = eval_main(words)
    assert results["manifest"]["config"]["evaluation"]["rivals"] == [] and "kvpress" not in results
    with pytest.raises(ConfigError, match=r"evaluation.rivals: the package kvpress"):
        eval_main([*words, "--rivals", "kvpress"])
    results["manifest"]["config"]["evaluation"]["rivals"] = ["kvpress"]  # as the run itself may have measured it
    write_json(run / "eval.json", results)
    monkeypatch.setattr("latentwire.model.pretrained.load_checkpoint", None)
    assert eval_main(words) == results


def test_a_run_tunes_on_what_is_selected_and_measures_both(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in RIVALS["llmlingua"].rival, RIVALS["kvpress"].rival:
        pytest.importorskip(str(package), reason=f"the package {package} is not installed")
    run = tmp_path / "run"
    flags = arguments(models, out_dir=run, override=f"evaluation.llmlingua_model={models / 'llama'}")
    train_main(flags)
    plain = json.loads((run / "eval.json").read_text())
    assert not set(RIVALS) & (set(plain) | set(plain["receivers"]["llama"]))
    adapter = run / "last" / "baselines" / "llama-llmlingua.safetensors"
    assert not adapter.exists()

    train_main([*flags, "--eval_rivals", "llmlingua", "--stages", "baselines"])  # the finished run goes on
    assert adapter.is_file()
    stages = [json.loads(line)["stage"] for line in (run / "diagnostics.jsonl").read_text().splitlines()]
    assert stages.count("baseline/llama/llmlingua") == 1 == stages.count("baseline/qwen/llmlingua")
    capsys.readouterr()
    eval_main(["--ckpt", str(run), "--out", str(tmp_path / "both"), "--rivals", "llmlingua,kvpress"])
    table = capsys.readouterr().out
    results = json.loads((tmp_path / "both" / "eval.json").read_text())
    assert results["manifest"]["versions"]["llmlingua"] and results["manifest"]["versions"]["kvpress"]
    assert results["manifest"]["config"]["evaluation"]["rivals"] == ["llmlingua", "kvpress"]
    for name, own in results["receivers"].items():
        for mode in RIVALS:
            assert own[mode]["f1_ci"][0] <= own[mode]["f1"] <= own[mode]["f1_ci"][1]
            assert own[mode]["tuned"] == mode.endswith("tuned") and f" {mode} " in table
            assert own[mode]["positions"] <= own["positions"]["latent"]
        assert own["kvpress"]["positions"] == own["positions"]["latent"]
        assert own["llmlingua"]["positions"] > 0.8 * own["positions"]["latent"]
        assert own["kvpress"]["nll_per_token"] != own["kvpress_text_tuned"]["nll_per_token"]
        assert own["llmlingua"]["nll_per_token"] != own["llmlingua_tuned"]["nll_per_token"]
        for mode in set(plain["receivers"][name]) & set(MODES):
            before = plain["receivers"][name][mode]
            assert (before and before["nll_per_token"]) == (own[mode] and own[mode]["nll_per_token"])
    assert results["kvpress"]["f1"] == pytest.approx(sum(r["kvpress"]["f1"] for r in results["receivers"].values()) / 2)
    rows = {(r["receiver"], r["mode"]): r for r in csv.DictReader((tmp_path / "both" / "eval.csv").open())}
    assert float(rows["llama", "kvpress"]["compression"]) == pytest.approx(results["receivers"]["llama"]["compression"])

    for stage in (run / "stages").glob("baseline-*-llmlingua"):
        shutil.rmtree(stage)  # as if another run had tuned it
    train_main(flags)  # what was tuned stays, also where it is not measured again
    assert adapter.is_file()
    assert set(json.loads((run / "eval.json").read_text())["receivers"]["llama"]) == set(plain["receivers"]["llama"])
