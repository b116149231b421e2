"""Senders other than the backbone, through the commands: train, evaluate, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from latentwire.eval import main as eval_main
from latentwire.train import main as train_main
from tests.commands import arguments, export_main, fails
from tests.tiny import save_tiny_bert

KINDS = ["byte", "simple-st", "stq"]


def flags_of(models: Path, kind: str, **more: object) -> list[str]:
    if kind == "byte":
        more["byte_layers"] = 1
    else:
        more["sender_id"] = models / "bert"
    if kind != "simple-st":
        more["query_heads"] = 2
    options: dict[str, object] = {
        "encoder_type": kind,
        "encoder_layers": "0,10,20",
        "query_width": 16,
        "refiner_width": 16,
        "latent_shared_len": 6,
        "latent_private_len": 2,
        "latent_keep_start": 0.5,
        "slot_tuning_max_steps": 1,
        "tuned_cache": models / f"cache-{kind}",
    }
    return [*arguments(models, **options | more), "--use_latent_refiner"]


@pytest.fixture(scope="module", params=KINDS)
def trained(models: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    if not (models / "bert").exists():
        save_tiny_bert(models / "bert")
    run = train_main(flags_of(models, request.param, out_dir=models / request.param))
    return run | {"kind": request.param}


def test_a_run_trains_evaluates_and_goes_on_where_it_was(
    models: Path, trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run, kind = models / trained["kind"], trained["kind"]
    rows = [json.loads(line) for line in (run / "diagnostics.jsonl").read_text().splitlines()]
    assert {r["stage"].split("/")[0] for r in rows} == {"slot_tuning", "end_to_end", "baseline"}
    last = [r for r in rows if r["stage"] == "end_to_end"][-1]
    assert last["grad_norm/encoder"] > 0 and "lr/latent_refiner" in last
    assert trained["evaluation"]["receivers"]["llama"]["latent"]["nll_per_token"] > 0
    again = train_main(flags_of(models, kind, out_dir=run))
    assert "end_to_end: done before" in capsys.readouterr().out
    assert again["evaluation"]["latent"]["f1"] == trained["evaluation"]["latent"]["f1"]


def test_a_checkpoint_is_exported_and_one_receiver_of_it_evaluated(
    models: Path, trained: dict[str, Any], tmp_path: Path
) -> None:
    kind = trained["kind"]
    export_main(["--ckpt", str(models / kind), "--out_dir", str(tmp_path / "out")])
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        f"type {kind}, 10 latents, d_z 16" in card
        and "2 latents private to each receiver" in card
        and "latent_refiner" in card
    )
    sender = models / ("llama" if kind == "byte" else "bert")
    words = ["--samples", "6", "--quiet", "--override", f"encoder.model={sender}"]
    for key, model in (("llama_id", "llama"), ("qwen_id", "qwen3")):
        words += ["--override", f"model.{key}={models / model}"]
    both, one = (
        eval_main(["--ckpt", str(tmp_path / "out"), *words, *more, "--out_dir", str(tmp_path / name)])
        for name, more in (("both", []), ("one", ["--receivers", "qwen"]))
    )
    assert list(one["receivers"]) == ["qwen"]
    nll = [results["receivers"]["qwen"]["latent"]["nll_per_token"] for results in (both, one)]
    assert nll[0] == pytest.approx(nll[1], rel=1e-5)
    trained_nll = trained["evaluation"]["receivers"]["qwen"]["latent"]["nll_per_token"]
    assert nll[0] == pytest.approx(trained_nll, rel=0.03)  # kept in 8 bits


def test_the_closed_form_is_refused_where_asked_for(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = flags_of(models, "byte", out_dir=tmp_path, stages="slot_tuning,closed_form,end_to_end")
    assert "--stages: closed_form solves encoder.type = 'backbone', not 'byte'" in fails(train_main, flags, capsys)
    assert not any(tmp_path.iterdir())


def test_heads_show_no_other_tokens_where_latents_are_set_aside(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = flags_of(models, trained["kind"], init_from=models / trained["kind"], out_dir=tmp_path / "run")
    flags += ["--override", 'deep_prefix.ranked={"qwen": 1}']
    assert "deep_prefix.ranked: " in (refusal := fails(train_main, flags, capsys))
    assert "sets latents aside for each receiver" in refusal
    assert not (tmp_path / "run").exists()


def test_the_lossless_limit_of_a_sender_that_predicts_no_next_token_is_refused_before_training(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (models / "bert").exists():
        save_tiny_bert(models / "bert")
    flags = [*flags_of(models, "simple-st", out_dir=tmp_path / "run"), "--override", "evaluation.lm_bytes=true"]
    assert str(models / "bert") in fails(train_main, flags, capsys)
    assert not (tmp_path / "run").exists()
