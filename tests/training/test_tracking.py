"""diagnostics.report_to: a tracker gets the lines of diagnostics.jsonl, stage by stage, and nothing goes elsewhere."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from latentwire.config import load_config
from latentwire.core.errors import ConfigError
from latentwire.train import main as train
from latentwire.training.tracking import Tracker, numbers, tracker_of
from tests.commands import arguments

RECORDS: list[dict[str, Any]] = [
    {"stage": "slot_tuning/a", "step": 1, "receiver": "a", "loss": 2.0, "lr/lora": 0.1, "smooth_loss/a": 2.5},
    {"stage": "slot_tuning/a", "step": 2, "receiver": "a", "loss": 1.0, "skipped": True},
    {"stage": "closed_form", "r2": {"a": 0.5, "b": 0.25}, "seconds": 3},
    {"stage": "end_to_end", "step": 1, "receiver": "b", "loss": 4.0},
]


class Fake(ModuleType):
    """What Accelerate uses of wandb and of trackio; every tracked run keeps what it was given."""

    def __init__(self, name: str, refuses: str = ""):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.refuses = refuses
        self.runs: list[FakeRun] = []

    def init(self, **given: Any) -> FakeRun:
        if self.refuses:
            raise RuntimeError(self.refuses)
        self.runs.append(FakeRun(given))
        return self.runs[-1]


class FakeRun:
    def __init__(self, given: dict[str, Any]):
        self.given = given
        self.logged: list[tuple[int | None, dict[str, float]]] = []
        self.finished = 0

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        assert not self.finished
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


def test_numbers_are_named_after_the_receiver_whose_step_it_was() -> None:
    step, skipped, closed, _ = (dict(numbers(record)) for record in RECORDS)
    assert step == {"loss/a": 2.0, "lr/lora": 0.1, "smooth_loss/a": 2.5} and skipped["skipped/a"] == 1.0
    assert closed == {"r2/a": 0.5, "r2/b": 0.25, "seconds": 3.0}


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_each_stage_is_a_run_of_its_own(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(name)
    monkeypatch.setitem(sys.modules, name, fake)
    config = load_config(None, [], {"diagnostics.report_to": name})
    tracker = Tracker(name, tmp_path / "mine", config)
    for record in RECORDS:
        tracker.log(record)
    assert [run.given["name"] for run in fake.runs] == ["mine/slot_tuning-a", "mine/closed_form", "mine/end_to_end"]
    assert {(r.given["project"], r.given["group"]) for r in fake.runs} == {("latentwire", "mine")}
    assert fake.runs[0].given["config"] == config.model_dump(mode="json")
    assert [[step for step, _ in run.logged] for run in fake.runs] == [[1, 2], [None], [1]]
    assert [run.finished for run in fake.runs] == [1, 1, 0]
    tracker.close()
    tracker.close()
    assert fake.runs[2].finished == 1


def test_tensorboard_writes_into_the_run_s_folder(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracker = tracker_of(load_config(None, [], {"diagnostics.report_to": "tensorboard"}), tmp_path / "mine")
    assert tracker is not None
    for record in RECORDS:
        tracker.log(record)
    tracker.close()
    folder = tmp_path / "mine" / "tensorboard"
    assert sorted(path.name for path in folder.iterdir()) == ["closed_form", "end_to_end", "slot_tuning-a"]
    events = accumulator.EventAccumulator(str(folder / "slot_tuning-a")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/a")] == [(1, 2.0), (2, 1.0)]
    assert b'"runs_dir": "runs"' in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert accumulator.EventAccumulator(str(folder / "closed_form")).Reload().Scalars("r2/b")[0].value == 0.25


def test_a_training_run_tracks_every_line_of_its_log(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake("wandb")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    flags = arguments(models, out_dir=tmp_path / "run", tuned_cache=tmp_path, report_to="wandb", eval_samples=0)
    train([*flags, "--profile_memory"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "diagnostics.jsonl").read_text().splitlines()]
    logged = [(step, values) for run in fake.runs for step, values in run.logged]
    assert logged == [(line.get("step"), dict(numbers(line))) for line in lines] and len(lines) > 6
    stages = [run.given["name"].removeprefix("run/") for run in fake.runs if run.logged]
    assert stages == list(dict.fromkeys(line["stage"].replace("/", "-") for line in lines))
    assert all(run.finished == 1 for run in fake.runs)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, r"diagnostics\.report_to: wandb is not installed \(pip install wandb"),
        (Fake("wandb", "no login\nmore"), r"diagnostics\.report_to: wandb could not be started: no login$"),
    ],
)
def test_a_tracker_that_cannot_be_had_is_one_line_before_the_first_step(
    module: Fake | None, message: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(ConfigError, match=message) as caught:
        train(arguments(models, out_dir=tmp_path / "run", tuned_cache=tmp_path, report_to="wandb"))
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "diagnostics.jsonl").exists()
    assert (tmp_path / "run").exists() == (module is not None)


def test_a_tracker_that_fails_later_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Fake("wandb")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker = Tracker("wandb", tmp_path / "mine", load_config(None, [], {"diagnostics.report_to": "wandb"}))
    tracker.log(RECORDS[0])
    monkeypatch.setattr(fake, "refuses", "no network\nmore")
    tracker.log(RECORDS[2])
    tracker.log(RECORDS[3])
    tracker.log(RECORDS[3] | {"step": 2})
    said = "wandb could not be started: no network; the rest of the stage is not tracked"
    assert capsys.readouterr().err.splitlines() == [f"warning: diagnostics.report_to: {said}"] * 2
    monkeypatch.setattr(fake, "refuses", "")
    tracker.log(RECORDS[0] | {"step": 3})
    tracker.close()
    assert [[step for step, _ in run.logged] for run in fake.runs] == [[1], [3]]
    assert [run.finished for run in fake.runs] == [1, 1]


def test_none_is_the_default() -> None:
    assert tracker_of(load_config(None, [], {}), Path("nowhere")) is None
