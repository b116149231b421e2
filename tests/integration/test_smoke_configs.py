"""Every configuration in configs/smoke loads, dry-runs, trains and evaluates, on tiny models in place of real ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from latentwire.checkpoint.tensors import load_folder
from latentwire.config import load_config
from latentwire.eval import main as eval_main
from latentwire.features import FEATURES
from latentwire.train import main as train_main
from tests import ROOT
from tests.commands import on_tiny_models, override_words

CONFIGS = sorted((ROOT / "configs" / "smoke").glob("*.json"))


def training_of(config: Path, models: Path, run: Path) -> list[str]:
    """The training command for a configuration, with a companion where it has one."""
    more: dict[str, Any] = {"checkpoint.tuned_cache": str(run.parent / "tuned")}
    if load_config(config).encoder.companion:
        more |= {
            "encoder.companion": str(models / "gemma3"),
            "encoder.companion_layers": [1, 2],
            "encoder.companion_d_z": 6,
        }
    return on_tiny_models(config, models, run, {"llama": "llama", "gemma": "gemma3"}, more)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_smoke_configuration_trains_and_evaluates(path: Path, models: Path, tmp_path: Path) -> None:
    words = training_of(path, models, tmp_path / "run")
    config = load_config(path)
    dry = train_main([*words, "--dry-run"])
    assert dry["config"]["features"] == config.features.model_dump() and not (tmp_path / "run").exists()

    trained = train_main(words)
    measured = trained["evaluation"]
    for name in ("llama", "gemma"):
        own = measured["receivers"][name]
        assert all(own[mode] for mode in config.evaluation.modes if mode != "text_tuned")
        assert (own["text_tuned"] is not None) is config.features.use_lora
        assert own["latent"]["nll_per_token"] > 0 and own["compression"] > 1
    lines = (tmp_path / "run" / "diagnostics.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, lines) if row["stage"] == "end_to_end"]
    assert {row["receiver"] for row in steps} == {"llama", "gemma"}
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in steps)
    # What the configuration switches on was trained: it has a gradient norm of its own.
    on = {name for name in (*FEATURES, "lora") if getattr(config.features, f"use_{name}")}
    for name in on:
        assert any(row.get(f"grad_norm/{name}/gemma", 0) > 0 for row in steps), name

    again = eval_main(
        [
            "--ckpt",
            trained["checkpoint"],
            "--samples",
            "6",
            "--out_dir",
            str(tmp_path / "eval"),
            "--quiet",
            "--fresh_eval",
        ]
    )
    assert again["latent"]["nll_per_token"] == pytest.approx(measured["latent"]["nll_per_token"], rel=1e-3)
    assert again["samples"] == 6 and 0 <= again["latent"]["f1"] <= 1


def test_frozen_receivers_are_a_track_of_their_own(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """configs/frozen.json: no LoRA on receivers; closed form and end to end train sender and generators."""
    words = training_of(ROOT / "configs" / "frozen.json", models, tmp_path / "run")
    short = {"data.dataset": "facts", "data.samples": 40, "curriculum.closed_form.held_out": 2}
    trained = train_main([*words, *override_words(short)])
    shown = capsys.readouterr().out
    assert shown.count("latent (no LoRA)") == 2 and "text_tuned" not in shown
    for own in trained["evaluation"]["receivers"].values():
        assert own["text"] and not own["latent"]["tuned"] and own["text_tuned"] is None
    rows = [json.loads(line) for line in (tmp_path / "run" / "diagnostics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"salience", "closed_form", "closed_form/companion", "end_to_end"}
    kept = load_folder(Path(trained["checkpoint"]))
    assert set(kept) == {"sender", "receivers/llama", "receivers/gemma"}
    assert not any("lora" in key for name, group in kept.items() if name != "sender" for key in group)
    done = json.loads((tmp_path / "run" / "stages" / "end_to_end" / "done" / "checkpoint.json").read_text())
    assert set(done["parameters"]) == {
        "encoder",
        "sender_lora",
        *(f"{part}/{n}" for part in ("generator", "generator_mlp", "head") for n in ("llama", "gemma")),
    }
