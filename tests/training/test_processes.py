"""Two processes under `accelerate launch` take the steps that one takes with twice the accumulation, and end alike."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentwire.checkpoint.tensors import load_folder
from latentwire.cli.run_ablation import main as ablation_main
from latentwire.core.errors import ConfigError, Interrupted, LatentWireError
from latentwire.train import main as train_main
from latentwire.training import processes
from latentwire.training.fitting import fit
from latentwire.training.loop import Callback, Trainer
from latentwire.training.module import ParameterGroup, StepOutput
from latentwire.training.processes import Processes
from tests import ROOT
from tests.systems import small_config
from tests.tiny import save_tiny

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


# ---- how they end ----------------------------------------------------------------------------------------------------


def _process(index: int, port: int, work: Callable[[Path], Any], folder: Path, results: Any) -> None:
    where = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in where.items()} | {"MASTER_ADDR": "127.0.0.1"}
    results.put((index, work(folder)))


def in_two_processes(work: Callable[[Path], Any], folder: Path) -> list[Any]:
    """What a function of this file returns in the main process and in another one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["latentwire.training.loop", __name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = context.Queue()
    started = [context.Process(target=_process, args=(i, port, work, folder, results), daemon=True) for i in range(2)]
    try:
        for process in started:
            process.start()
        return [result for _, result in sorted(results.get(timeout=120) for _ in started)]
    finally:
        for process in started:
            process.kill()


class Number:
    """A stage that pulls a number to 1; each step has two micro-batches, of which some give NaN."""

    name, batches_per_epoch, total_batches = "number", 100, 0

    def __init__(self, bad: tuple[int, ...] = ()):
        self.number = nn.Parameter(torch.zeros(1))
        self.bad = bad

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("number", [self.number], 0.1)]

    def batch(self, index: int) -> int:
        return index

    def size(self, batch: int) -> tuple[str, int]:
        return f"part{batch % 2}", 1

    def forward(self, batch: int) -> StepOutput:
        factor = float("nan") if batch in self.bad else 1.0
        return StepOutput((self.number - 1).pow(2).sum() * factor, 1, self.size(batch)[0])

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"number": {"number": self.number.detach()}}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.number.data.copy_(state["number"]["number"])


class Watching(Callback):
    """Keeps the records; at a step, asks this process to stop, if it is the one that `stops`."""

    def __init__(self, stops: bool = False):
        self.stops = stops
        self.records: list[dict[str, Any]] = []

    def on_step(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        if self.stops and record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)


def _with_nan(folder: Path) -> Any:
    module, watching = Number(bad=(3,)), Watching()  # of the second step, what the other process takes
    Trainer(module, small_config(optimizer={"accumulation": 2}), folder, 3, callbacks=[watching]).fit()
    seen = [(record["step"], record["receiver"], record.get("skipped", False)) for record in watching.records]
    return seen, float(module.number)


def _with_a_signal(folder: Path) -> Any:
    stops = Processes().state.process_index == 1  # the main process gets none
    trainer = Trainer(Number(), small_config(optimizer={"accumulation": 2}), folder, 9, callbacks=[Watching(stops)])
    try:
        trainer.fit()
    except Interrupted as stopped:
        return trainer.step, str(stopped)


def _with_an_error(folder: Path) -> Any:
    own, done = Processes(), folder / "done"

    def fail() -> None:
        raise ConfigError("config.json: another value")

    def work() -> None:
        with open(done, "a") as file:
            file.write("main " if own.is_main else "other ")

    try:
        own.by_main(fail)
    except LatentWireError as error:
        said = f"{type(error).__name__}: {error}"
    own.by_main(work)
    own.main_first(work)
    own.wait()
    return said, done.read_text()


def test_what_only_one_process_meets_ends_all_alike(tmp_path: Path) -> None:
    main, other = in_two_processes(_with_nan, tmp_path / "nan")
    assert main == other
    assert main[0] == [(1, "part0+part1", False), (2, "part1", True), (3, "part0+part1", False)]
    assert main[1] > 0

    main, other = in_two_processes(_with_a_signal, tmp_path / "stopped")
    assert (
        main
        == other
        == (2, f"stopped at step 2 and saved to {tmp_path / 'stopped'}. The same command goes on from there.")
    )
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["step_000002"]

    main, other = in_two_processes(_with_an_error, tmp_path)
    assert main == other == ("ConfigError: config.json: another value", "main main other ")


def test_whether_a_stage_was_done_is_the_main_process_s_word(tmp_path: Path) -> None:
    """It may have left it done while another still was on its way there: both then take part in what comes next."""
    joined: list[object] = []
    processes = SimpleNamespace(agreed=lambda value: False, by_main=joined.append)
    folder = SimpleNamespace(is_done=lambda name: True, done=lambda name: tmp_path)
    work: Any = SimpleNamespace(processes=processes, folder=folder, steps=lambda *stage: 0)
    fit(work, Number(), small_config().curriculum.end_to_end)
    assert len(joined) == 1


def test_what_several_processes_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = SimpleNamespace(num_processes=2, process_index=1, is_main_process=False)
    monkeypatch.setattr(processes, "PartialState", lambda **how: pair)
    with pytest.raises(ConfigError, match=r"system\.device: 'cuda:0' is one device for 2 processes"):
        Processes.of(small_config(system={"device": "cuda:0"}))
    with pytest.raises(ConfigError, match=r"system\.device_map: .* no room for 2 processes"):
        Processes.of(small_config(system={"device_map": "auto"}))
    colored = {"features": {"use_deep_prefix": False}, "adapter": {"color": "full"}}
    with pytest.raises(ConfigError, match=r"adapter\.color: 'full' .* 2 processes; say 'none'"):
        Processes.of(small_config(**colored))
    assert list(Processes().share(4)) == [2, 3] and list(Processes().share(3)) == [1, 2]
    with monkeypatch.context() as patch:
        patch.setattr(processes, "resolve_device", lambda device: "mps")
        with pytest.raises(ConfigError, match=r"system\.device: 'auto' is 'mps' here, and several .* say 'cpu'"):
            Processes.of(small_config(system={"device": "auto"}))
        patch.setattr(processes, "resolve_device", lambda device: "cuda")
        assert Processes.of(small_config(system={"device": "auto"})).count == 2
        patch.setenv("ACCELERATE_USE_CPU", "true")
        with pytest.raises(ConfigError, match=r"'auto' is 'cuda' here, and accelerate launch was asked for the CPU"):
            Processes.of(small_config(system={"device": "auto"}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match=r"an ablation is one process; .* --shard I/N"):
        ablation_main(["--config", "configs/ablation/sample_ablation.json"])
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"accelerate launch: FSDP splits models .*configs/accelerate/ddp\.yaml"):
        Processes()
