"""The ablation command: what it runs, skips, notes and leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentwire.cli.run_ablation import main
from latentwire.config import load_config
from latentwire.core.errors import ConfigError, TrainingError
from latentwire.core.json_files import write_json
from tests import ROOT
from tests.artifacts import measured, results
from tests.commands import on_tiny_models
from tests.tiny import save_tiny


class Trainer:
    """In the place of the training command: writes what a run leaves, and fails or stops where it is told to."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.fails: dict[str, BaseException] = {}

    def __call__(self, words: list[str]) -> None:
        folder = Path(words[words.index("--out_dir") + 1])
        self.runs.append(folder.name + (" fresh" if "--fresh" in words else ""))
        if folder.name in self.fails:
            raise self.fails[folder.name]
        overrides = [words[i + 1] for i, word in enumerate(words) if word == "--override"]
        config = load_config(words[words.index("--config") + 1], overrides).model_dump(mode="json")
        write_json(folder / "eval.json", results(config, a={"latent": measured(config["lora"]["r"] / 100)}))


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr("latentwire.cli.train.main", trainer)
    return trainer


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """An ablation of the LoRA rank: 2, 4, 8."""
    (tmp_path / "base.json").write_text(json.dumps({"data": {"samples": 7}}))
    (tmp_path / "study.json").write_text(json.dumps({"base": "base.json", "sweep": {"lora.r": [2, 4, 8]}}))
    return ["--config", str(tmp_path / "study.json"), "--out_dir", str(tmp_path / "out")]


def test_a_failing_run_is_noted_and_the_others_go_on(tmp_path: Path, trainer: Trainer, words: list[str]) -> None:
    trainer.fails["r=4"] = RuntimeError("out of\nmemory")
    with pytest.raises(TrainingError, match=r"^1 of 3 runs failed; r=4: out of memory$"):
        main(words)
    assert trainer.runs == ["r=2", "r=4", "r=8"]
    noted = json.loads((tmp_path / "out" / "r=4" / "failed.json").read_text())
    assert noted["kind"] == "RuntimeError" and "Traceback" in noted["traceback"]
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [run["status"] for run in table["runs"]] == ["done", "failed", "done"]
    assert (tmp_path / "out" / "plot.png").is_file()

    trainer.fails.clear()
    trainer.runs.clear()
    table = main(words)
    assert trainer.runs == ["r=4"]  # the others are done
    assert [run["receivers"]["a"]["f1"] for run in table["runs"]] == [0.02, 0.04, 0.08]
    trainer.runs.clear()
    assert main(words) == table and trainer.runs == []
    main([*words, "--fresh", "--only", "r=[24]"])
    assert trainer.runs == ["r=2 fresh", "r=4 fresh"]


def test_a_run_of_another_configuration_is_not_taken_for_done(
    tmp_path: Path, trainer: Trainer, words: list[str]
) -> None:
    main(words)
    trainer.runs.clear()
    table = main([*words, "--override", "data.samples=9", "--only", "r=4"])
    assert trainer.runs == ["r=4"]
    assert [run["status"] for run in table["runs"]] == ["unfinished", "done", "unfinished"]  # not of seven samples
    main([*words, "--override", "data.samples=9"])
    assert trainer.runs == ["r=4", "r=2", "r=8"]


def test_an_option_that_came_later_makes_no_run_another(tmp_path: Path, trainer: Trainer, words: list[str]) -> None:
    table = main(words)
    trainer.runs.clear()
    for name, section, key in (("r=2", "deep_prefix", "neighbours"), ("r=4", "lora", "dropout")):
        file = tmp_path / "out" / name / "eval.json"
        found = json.loads(file.read_text())
        del found["manifest"]["config"][section][key]
        file.write_text(json.dumps(found))
    assert main(words) == table and not trainer.runs
    found["manifest"]["config"]["lora"]["gone"] = 1  # nor is one of other options taken for the same
    file.write_text(json.dumps(found))
    main(words)
    assert trainer.runs == ["r=4"]


def test_ctrl_c_ends_it_and_is_no_failure(tmp_path: Path, trainer: Trainer, words: list[str]) -> None:
    from latentwire.core.errors import Interrupted

    trainer.fails["r=4"] = Interrupted("stopped at step 3")
    with pytest.raises(Interrupted):
        main(words)
    assert trainer.runs == ["r=2", "r=4"] and not (tmp_path / "out" / "r=4" / "failed.json").exists()
    assert json.loads((tmp_path / "out" / "table.json").read_text())["runs"][0]["status"] == "done"


def test_parts_for_job_arrays_cover_every_run_once(trainer: Trainer, words: list[str]) -> None:
    for part in ("1/2", "2/2"):
        main([*words, "--shard", part])
        trainer.runs.append("|")
    assert trainer.runs == ["r=2", "r=8", "|", "r=4", "|"]


def test_a_dry_run_lists_what_would_run(
    tmp_path: Path, trainer: Trainer, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*words, "--only", "r=2"])
    capsys.readouterr()
    (tmp_path / "out" / "table.md").unlink()
    listed = main([*words, "--dry-run", "--sweep", "lora.alpha=4,8", "--shard", "1/3"])
    assert listed["runs"] == ["r=2_alpha=4", "r=4_alpha=8"] and listed["folder"] == str(tmp_path / "out")
    assert "r=4_alpha=8: lora.r=4 lora.alpha=8\n" in capsys.readouterr().out
    assert main([*words, "--dry-run"])["runs"] == ["r=2", "r=4", "r=8"]
    assert "r=2: lora.r=2 (done)\n" in capsys.readouterr().out
    assert trainer.runs == ["r=2"] and not (tmp_path / "out" / "table.md").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--only", "r=3"], r"--only r=3: no such run \(there are: r=2, r=4, r=8\)"),
        (["--shard", "3/2"], r"--shard 3/2: expected I/N"),
        (["--shard", "0/2"], r"--shard 0/2: expected I/N"),
        (["--shard", "half"], r"--shard half: expected I/N"),
        (["--sweep", "lora.alpha="], r"--sweep lora\.alpha=: expected one value or more, such as lora\.alpha=1,2"),
        (["--sweep", "lora.rr=1"], r"lora\.rr: unknown key"),
        (["--override", "lora.r=1"], r"--override lora\.r: the runs of .* differ in it"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    tmp_path: Path, trainer: Trainer, words: list[str], more: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        main([*words, *more])
    assert not trainer.runs and not (tmp_path / "out").exists()


def test_the_sample_runs_on_real_stages(tmp_path: Path) -> None:
    """configs/ablation/sample_ablation.json on tiny models, all four runs, each a training run of its own."""
    for family in ("llama", "gemma3"):
        save_tiny(family, tmp_path / family)
    config = ROOT / "configs" / "ablation" / "sample_ablation.json"
    short = {"data.samples": 48, "curriculum.closed_form.passages": 6, "curriculum.closed_form.held_out": 2}
    table = main(on_tiny_models(config, tmp_path, tmp_path / "out", {"a": "llama", "b": "gemma3"}, short))
    assert [run["run"] for run in table["runs"]] == [
        f"{form}_window={w}" for form in ("embedding", "slots") for w in (4, 8)
    ]
    size = {run["run"]: run["receivers"]["b"]["trained_parameters"] for run in table["runs"]}
    assert size["slots_window=4"] > size["embedding_window=4"] > 0  # a generator of slots is the wider one
    for run in table["runs"]:
        folder = tmp_path / "out" / run["run"]
        assert (folder / "config.json").is_file() and (folder / "last" / "checkpoint.json").is_file()
        assert run["status"] == "done" and set(run["receivers"]) == {"a", "b"}
        for m in run["receivers"].values():
            assert m["step_s"] > 0 and m["nll_per_token"] > 0 and m["compression"] > 1
    four, eight = (run["receivers"]["a"] for run in table["runs"][:2])
    assert eight["compression"] > four["compression"] and eight["wire_bytes"] < four["wire_bytes"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    assert {row["run"] for row in rows} == set(size) and any(row["stage"] == "end_to_end" for row in rows)
