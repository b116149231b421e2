"""Runs whose receivers' heads show tokens by rank (deep_prefix.ranked): from the start, or later for one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire.checkpoint.tensors import load_folder
from latentwire.eval import main as eval_main
from latentwire.train import main as train_main
from tests.commands import arguments, fails


def words(models: Path, out: Path, ranked: dict[str, int], **more: object) -> list[str]:
    flags = arguments(models, out_dir=out, **({"eval_samples": 0, "baselines_max_steps": 0} | more))
    return [*flags, "--override", f"deep_prefix.ranked={json.dumps(ranked)}"]


def reader_of(run: Path, name: str) -> dict[str, torch.Tensor]:
    state = load_folder(run)[f"receivers/{name}"]
    return {key.removeprefix("reader."): tensor for key, tensor in state.items() if key.startswith("reader.")}


def test_a_receiver_whose_heads_show_other_tokens_is_read_anew(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = words(models, tmp_path, {"qwen": 2}, init_from=models / "run", end_to_end_max_steps=0)
    train_main(flags)
    before, after = models / "run" / "last", tmp_path / "last"
    for key, tensor in reader_of(before, "llama").items():
        assert reader_of(after, "llama")[key].equal(tensor)
    old, new = reader_of(before, "qwen"), reader_of(after, "qwen")
    assert "phases_of" not in old and set(new["phases_of"].flatten().tolist()) == {0, 1}
    assert not new["generator.linear"].equal(old["generator.linear"])
    rows = [json.loads(line) for line in (tmp_path / "diagnostics.jsonl").read_text().splitlines()]
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    assert stages == ["heads/qwen", "slot_tuning/qwen", "closed_form"]
    assert 0 < sum(rows[0]["layer.head"].values()) <= 1.001
    capsys.readouterr()
    train_main(flags)  # all is there, also which heads show which tokens
    assert "closed_form: done before" in capsys.readouterr().out
    assert reader_of(after, "qwen")["phases_of"].equal(new["phases_of"])
    results = eval_main(["--ckpt", str(tmp_path), "--samples", "6", "--override", "evaluation.latency_samples=1"])
    assert set(results["receivers"]) == {"llama", "qwen"}


def test_its_lora_begins_as_the_one_that_was_tuned_on_text(
    models: Path, trained: dict[str, Any], tmp_path: Path
) -> None:
    steps = {"init_from": models / "run", "slot_tuning_max_steps": 0, "end_to_end_max_steps": 0}
    train_main([*words(models, tmp_path, {"qwen": 2}, **steps), "--use_lora"])
    before, after = load_folder(models / "run" / "last"), load_folder(tmp_path / "last")

    def lora(group: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: tensor for key, tensor in group.items() if key.startswith("lora.")}

    for name, start in (("llama", "receivers/llama"), ("qwen", "baselines/qwen-text")):
        own, meant = lora(after[f"receivers/{name}"]), lora(before[start])
        assert own.keys() == meant.keys() and own
        assert all(tensor.equal(meant[key]) for key, tensor in own.items())
    kept = lora(before["receivers/qwen"])
    assert not all(tensor.equal(kept[key]) for key, tensor in lora(after["receivers/qwen"]).items())


def test_the_companion_is_fitted_again_to_what_such_a_receiver_misses(
    models: Path, trained: dict[str, Any], tmp_path: Path
) -> None:
    companion: dict[str, object] = {
        "companion_id": models / "qwen3", "companion_layers": "1,2", "companion_d_z": 6, "d_z": 22,
        "end_to_end_max_steps": 2, "generator_hidden": 8,
    }  # fmt: skip
    train_main(words(models, tmp_path / "old", {}, **companion))
    again = companion | {"end_to_end_max_steps": 0, "init_from": tmp_path / "old"}
    train_main(words(models, tmp_path / "new", {"qwen": 2}, **again))
    old, new = (load_folder(tmp_path / run / "last")["sender"] for run in ("old", "new"))
    for key, tensor in old.items():
        assert tensor.equal(new[key]) == (key != "encoder.companion.weight"), key
    for name, used in (("llama", False), ("qwen", True)):
        generator = reader_of(tmp_path / "new" / "last", name)
        assert bool(generator["generator.linear"][-6:].any()) == used
        assert used or not generator["generator.mlp.0.weight"][:, -6:].any()


@pytest.mark.parametrize(
    ("ranked", "more", "refusal"),
    [
        ({"mistral": 2}, [], "deep_prefix.ranked: 'mistral' is not in model.receivers"),
        ({"qwen": 9}, [], "deep_prefix.ranked: 'qwen': 9 is more than the"),
        ({"qwen": 2}, ["deep_prefix.pattern=strided"], "'strided' shows the same token in all heads"),
        ({"qwen": 2}, ["curriculum.closed_form.importance_passages=0"], "importance_passages to rank heads on"),
        ({}, ["encoder.keep=2", "encoder.keep_order=score"], "encoder.keep_by = 'surprisal' both orders are the same"),
        ({"qwen": 2}, ['curriculum.train_only=["llama"]'], "with train_only, 'qwen' stays as"),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    models: Path,
    trained: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ranked: dict[str, int],
    more: list[str],
    refusal: str,
) -> None:
    flags = words(models, tmp_path / "run", ranked, init_from=models / "run")
    flags += [word for change in more for word in ("--override", change)]
    assert refusal in fails(train_main, flags, capsys)
    assert not (tmp_path / "run").exists()
