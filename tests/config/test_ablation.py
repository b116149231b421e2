"""What an ablation's file means: which runs there are, what they are called, and mistakes in one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from latentwire.config.ablation import load_ablation
from latentwire.core.errors import ConfigError
from tests import ROOT


def write(folder: Path, **values: Any) -> Path:
    (folder / "base.json").write_text(json.dumps({"data": {"samples": 7}, "encoder": {"window": 2, "d_z": 8}}))
    path = folder / "study.json"
    path.write_text(json.dumps({"base": "base.json"} | values))
    return path


def test_every_named_run_is_made_at_every_point(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        overrides={"data.seed": 5},
        runs={"frozen": {}, "lora": {"features.use_lora": True}},
        sweep={"encoder.window": [4, 8], "lora.targets": ["all-linear", ["q_proj", "v_proj"]]},
    )
    plan = load_ablation(path)
    assert (plan.name, plan.base) == ("study", tmp_path / "base.json")
    assert [run.name for run in plan.runs] == [
        f"{name}_window={w}_targets={t}"
        for name in ("frozen", "lora")
        for w in (4, 8)
        for t in ("all-linear", "q_proj-v_proj")
    ]
    last = plan.runs[-1]
    assert last.differs == {"features.use_lora": True, "encoder.window": 8, "lora.targets": ["q_proj", "v_proj"]}
    assert last.changes == {"data.seed": 5} | last.differs
    assert (last.config.encoder.window, last.config.features.use_lora, last.config.lora.r) == (8, True, 8)
    assert (last.config.data.samples, last.config.data.seed, last.config.encoder.d_z) == (7, 5, 8)


def test_the_first_pattern_says_what_a_run_is_set_against(tmp_path: Path) -> None:
    runs = {"base": {}, "lora": {"features.use_lora": True}, "slots": {"lora.r": 2}, "slots_b": {"lora.r": 4}}
    path = write(tmp_path, runs=runs, against={"slots*": "slots", "*": "base"})
    assert [run.against for run in load_ablation(path).runs] == [None, "base", None, "slots"]
    assert {run.against for run in load_ablation(write(tmp_path, runs=runs)).runs} == {None}


def test_a_sweep_alone_runs_alone_and_nothing_at_all(tmp_path: Path) -> None:
    grid = {"lora.r": [2], "optimizer.lr": [0.1, 1e-4]}
    assert [r.name for r in load_ablation(write(tmp_path, sweep=grid)).runs] == ["r=2_lr=0.1", "r=2_lr=0.0001"]
    assert [r.name for r in load_ablation(write(tmp_path, runs={"b": {}, "a": {}})).runs] == ["b", "a"]
    assert [r.name for r in load_ablation(write(tmp_path)).runs] == ["base"]
    # Two keys that end alike are told apart by more of them.
    seeds = {"data.seed": [1], "system.seed": [2]}
    assert load_ablation(write(tmp_path, sweep=seeds)).runs[0].name == "data.seed=1_system.seed=2"


def test_the_command_line_adds_to_the_file_and_wins(tmp_path: Path) -> None:
    path = write(tmp_path, overrides={"data.samples": 9}, sweep={"encoder.window": [4, 8]})
    plan = load_ablation(path, {"encoder.window": [16], "encoder.d_z": [32, 64]}, {"data.samples": 3})
    assert [run.name for run in plan.runs] == ["window=16_d_z=32", "window=16_d_z=64"]
    assert {run.config.data.samples for run in plan.runs} == {3}


def test_epochs_of_a_run_lift_the_limit_of_all_that_they_come_over(tmp_path: Path) -> None:
    stage = "curriculum.end_to_end"
    path = write(
        tmp_path,
        overrides={f"{stage}.max_steps": 40},
        runs={"short": {}, "long": {f"{stage}.epochs": 3}, "both": {f"{stage}.epochs": 2, f"{stage}.max_steps": 9}},
    )
    stages = [run.config.curriculum.end_to_end for run in load_ablation(path).runs]
    assert [(one.epochs, one.max_steps) for one in stages] == [(1, 40), (3, None), (2, 9)]
    path = write(tmp_path, overrides={f"{stage}.max_steps": 4})
    assert load_ablation(path, overrides={f"{stage}.epochs": 5}).runs[0].config.curriculum.end_to_end.max_steps is None
    path = write(tmp_path, runs={"a": {f"{stage}.max_steps": 4}, "b": {}})
    with pytest.raises(ConfigError, match=rf"^--override {stage}\.max_steps: the runs of .* differ in it"):
        load_ablation(path, overrides={f"{stage}.epochs": 5})


def test_a_base_is_beside_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    write(tmp_path / "given")
    (tmp_path / "given" / "base.json").write_text('{"encoder": {"window": 5}}')
    (tmp_path / "mine.json").write_text('{"extends": "given/study.json", "sweep": {"data.seed": [1]}}')
    plan = load_ablation(tmp_path / "mine.json")
    assert [run.config.encoder.window for run in plan.runs] == [5]


@pytest.mark.parametrize(
    ("values", "overrides", "message"),
    [
        ({"sweeps": {}}, {}, r"study\.json: sweeps: unknown key \(did you mean sweep\?\)"),
        ({"sweep": {"encoder.window": []}}, {}, r"study\.json: sweep\.encoder\.window: "),
        ({"sweep": {"encoder.window": 4}}, {}, r"study\.json: sweep\.encoder\.window: .*got 4"),
        ({"runs": {"../up": {}}}, {}, r"study\.json: runs\.\.\./up"),
        ({"runs": {"x": {"lora.rank": 3}}}, {}, r"study\.json: run 'x': lora\.rank: unknown key"),
        ({"sweep": {"encoder.window": [0]}}, {}, r"study\.json: run 'window=0': encoder\.window: .*got 0"),
        (
            {"runs": {"x": {"encoder.window": 2}}, "sweep": {"encoder.window": [4]}},
            {},
            r"runs\.x: encoder\.window is swept",
        ),
        ({"sweep": {"encoder.window": [4, 4]}}, {}, r"two runs would be called 'window=4'"),
        (
            {"sweep": {"encoder.window": [4]}},
            {"encoder.window": 2},
            r"--override encoder\.window: the runs of .* differ",
        ),
        ({"overrides": {"evaluation.samples": 0}}, {}, r"run 'base': evaluation\.samples: 0"),
        ({"overrides": {"evaluation.modes": ["text"]}}, {}, r"run 'base': evaluation\.modes: .*'latent'"),
        ({"base": "gone.json"}, {}, r"gone\.json: no such file"),
        ({"runs": {"x": 3}}, {}, r"study\.json: runs\.x: "),
        ({"against": {"*": "gone"}}, {}, r"study\.json: against\.\*: no run is called 'gone' \(there are: base\)"),
        ({"against": {"lora*": "base"}}, {}, r"study\.json: against\.lora\*: no such run"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path: Path, values: Any, overrides: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_ablation(write(tmp_path, **values), overrides=overrides)
    assert "\n" not in str(caught.value)


def test_the_example_of_the_documentation_gives_the_runs_that_it_names(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "ablation.md").read_text()
    (example,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    shutil.copytree(ROOT / "configs" / "smoke", tmp_path / "smoke")
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "example.json").write_text(example)
    for run in load_ablation(tmp_path / "ablation" / "example.json").runs:
        assert f"`{run.name}`" in page
