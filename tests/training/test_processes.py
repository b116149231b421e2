"""Two processes under `accelerate launch` take the steps that one takes with twice the accumulation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from latentwire.checkpoint.tensors import load_folder
from latentwire.core.errors import ConfigError
from latentwire.train import main as train_main
from latentwire.training import processes
from latentwire.training.processes import Processes
from tests.systems import small_config
from tests.tiny import save_tiny

ROOT = Path(__file__).resolve().parents[2]
CPU = ["--config_file", "configs/accelerate/cpu.yaml", "--main_process_port", "0"]


def config_file(folder: Path) -> Path:
    """Three receivers and two micro-batches a step: in each step there are parameters that no process has a gradient
    of, and others that only one of them has."""
    models = {name: str(save_tiny(name, folder / name)) for name in ("llama", "gemma3", "qwen3")}
    config = small_config(
        model={"receivers": {"a": models["llama"], "b": models["gemma3"], "c": models["qwen3"]}},
        encoder={"model": models["llama"]},
        data={"dataset": "facts", "samples": 48, "max_context_tokens": 400},
        features={"use_lora": True},
        curriculum={
            "slot_tuning": {"max_steps": 2},
            "closed_form": {"passages": 4, "held_out": 2, "importance_passages": 2},
            "end_to_end": {"max_steps": 4},
            "baselines": {"max_steps": 0},
        },
        diagnostics={"log_every": 1},
        evaluation={"samples": 0},
    )
    path = folder / "config.json"
    path.write_text(config.model_dump_json())
    return path


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "diagnostics.jsonl").read_text().splitlines()]


def test_two_processes_equal_one_with_twice_the_accumulation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(config_file(tmp_path))]
    one, two = tmp_path / "one", tmp_path / "two"
    mine = [*words, "--out_dir", str(two), "--tuned_cache", str(tmp_path / "cache_of_two")]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *CPU, "-m", "latentwire.cli.train", *mine],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("end_to_end: step 4/4") == 1  # one of them speaks
    train_main([*words, "--out_dir", str(one), "--tuned_cache", str(tmp_path / "cache"), "--accumulation", "2"])

    ours, theirs = records(two), records(one)
    assert [(r["stage"], r.get("step"), r.get("receiver")) for r in ours] == [
        (r["stage"], r.get("step"), r.get("receiver")) for r in theirs
    ]
    assert [r["receiver"] for r in ours if r["stage"] == "end_to_end"] == ["a+b", "c+a", "b+c", "a+b"]
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys()
        for key in ("loss", "grad_norm", "answer_ce", "first_acc", "r2"):
            if key in our:
                assert our[key] == pytest.approx(their[key], rel=1e-3), (our["stage"], our.get("step"), key)
    ends = [load_folder(run / "stages" / "end_to_end" / "done") for run in (two, one)]
    assert ends[0].keys() == ends[1].keys()
    for stem, tensors in ends[0].items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, ends[1][stem][name], atol=1e-4, rtol=1e-3, msg=f"{stem}: {name}")
    assert [json.loads((run / "manifest.json").read_text())["processes"] for run in (two, one)] == [2, 1]

    capsys.readouterr()
    train_main([*mine, "--accumulation", "2"])  # one process takes up what two have done
    assert capsys.readouterr().out.count("done before") == 2 and records(two) == ours


def test_what_several_processes_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = SimpleNamespace(num_processes=2, process_index=1, is_main_process=False)
    monkeypatch.setattr(processes, "PartialState", lambda **how: pair)
    with pytest.raises(ConfigError, match=r"system\.device: 'cuda:0' is one device for 2 processes"):
        Processes.of(small_config(system={"device": "cuda:0"}))
    with pytest.raises(ConfigError, match=r"system\.device_map: .* no room for 2 processes"):
        Processes.of(small_config(system={"device_map": "auto"}))
    assert list(Processes().share(4)) == [2, 3] and list(Processes().share(3)) == [1, 2]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"accelerate launch: FSDP splits models .*configs/accelerate/ddp\.yaml"):
        Processes()
