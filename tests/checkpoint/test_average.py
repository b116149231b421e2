"""`latentwire average`: the mean of checkpoints that went on from the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from latentwire.checkpoint.export import lineage
from latentwire.checkpoint.index import load_config_of, sender_fingerprint
from latentwire.checkpoint.tensors import checked_file, load_folder, read_info, save_folder
from latentwire.cli.main import main as latentwire
from latentwire.config.load import config_from_dict
from latentwire.core.errors import CheckpointError, ConfigError, LatentWireError
from latentwire.model.pretrained import load_checkpoint
from latentwire.training.origin import Origin
from tests.commands import export_main
from tests.systems import saved_run


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("averaged")) / "last"


def moved(one: Path, stem: str, folder: Path, by: float, log: str = "") -> Path:
    """The last checkpoint of a run that changed one file of another checkpoint."""
    info = read_info(one)
    group = {key: tensor + by for key, tensor in load_folder(one, [stem])[stem].items()}
    others = {name: checked_file(one, name, file) for name, file in info["files"].items() if name[:-12] != stem}
    manifest = info["manifest"] | {"command": ["train", folder.name]}
    save_folder(folder / "last", {stem: group}, info | {"manifest": manifest}, copied=others)
    if log:
        (folder / "diagnostics.jsonl").write_text(log)
    return folder


def test_each_file_is_the_mean_of_its_versions(one: Path, tmp_path: Path) -> None:
    a = moved(one, "receivers/a", tmp_path / "a", 0.5)
    b = moved(one, "receivers/b", tmp_path / "b", 1.0)
    c = moved(a / "last", "receivers/b", tmp_path / "c", -2.0)
    info = latentwire(["average", str(one), str(a), str(b), str(c), "--out", str(tmp_path / "mean")])
    before, mean = load_folder(one), load_folder(tmp_path / "mean")
    for stem, by in (("receivers/a", 0.25), ("receivers/b", -1 / 3), ("baselines/a-text", 0.0), ("sender", 0.0)):
        for key, tensor in before[stem].items():
            torch.testing.assert_close(mean[stem][key].float(), tensor.float() + by, rtol=0.01, atol=0.01)
    assert sender_fingerprint(tmp_path / "mean") == sender_fingerprint(one)
    assert info["files"]["sender.safetensors"] == read_info(one)["files"]["sender.safetensors"]
    system = load_checkpoint(tmp_path / "mean")
    wire = system.sender.encode("Mira lives in Orlin.")
    assert system.receivers["a"].answer(wire, "Who?").source == "latents"


def test_what_a_run_started_from_is_known_as_long_as_it_is_what_it_was(one: Path, tmp_path: Path) -> None:
    before, run = (moved(one, "receivers/a", tmp_path / name, 0.5) / "last" for name in ("before", "run"))
    index, note = run / "checkpoint.json", run.parent / "origin.json"
    info = json.loads(index.read_text())
    info["config"]["checkpoint"]["init_from"] = str(before)
    index.write_text(json.dumps(info))
    assert lineage(run) == [run]
    note.write_text(json.dumps(read_info(before)["files"]))
    assert lineage(run) == [before, run]
    note.write_text(json.dumps(read_info(one)["files"]))  # as it was, before it was trained on
    assert lineage(run) == [run]


def test_an_average_knows_the_runs_that_it_is_made_of(one: Path, tmp_path: Path) -> None:
    row = '{"stage": "end_to_end", "step": %d}\n'
    cut_off = '{"stage": "end_to_end", "step": 3, "loss": 2.0}\n'  # done again by the run that went on
    a = moved(one, "receivers/a", tmp_path / "a", 0.5, cut_off + row % 3)
    b = moved(one, "receivers/b", tmp_path / "b", 1.0, row % 4)
    latentwire(["average", str(a), str(b), "--out", str(tmp_path / "mean")])
    info = export_main(["--ckpt", str(tmp_path / "mean"), "--out_dir", str(tmp_path / "mine")])
    commands = [made["command"] for made in info["earlier"]]
    assert commands == [["train", "a"], ["train", "b"]]
    assert info["manifest"]["command"] == ["latentwire", "average", "a", "b", "--out", "mean"]
    log = [json.loads(line) for line in (tmp_path / "mine" / "training.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in log] == [("run 1: end_to_end", 3), ("run 2: end_to_end", 4)]
    assert "latentwire average a b" in (tmp_path / "mine" / "README.md").read_text()
    latentwire(["average", str(b), str(a), "--out", str(tmp_path / "mean")])  # takes the place of the one before
    shutil.copytree(a / "last", a / "epoch1")
    c = moved(a / "last", "receivers/b", tmp_path / "c", 1.0, row % 5)
    shutil.copytree(c / "last", a / "epoch2")  # both of one run, and the mean beside them
    latentwire(["average", str(a / "epoch1"), str(a / "epoch2"), "--out", str(a / "mean")])
    (line,) = (a / "mean" / "training.jsonl").read_text().splitlines()
    assert json.loads(line) == {"stage": "run 1: end_to_end", "step": 3}


def test_codebooks_stay_with_the_sender_that_they_were_found_for(one: Path, tmp_path: Path) -> None:
    info, files = read_info(one), {name: one / name for name in read_info(one)["files"]}
    book = {"codecs/fsq": {"level": torch.ones(2, dtype=torch.float16)}}
    info["config"]["codec"] |= {"learned": ["fsq"], "bits": 20.0, "width": 8}
    info["config"]["evaluation"]["codec"] = "fsq"
    save_folder(tmp_path / "book", book, info, copied=files)
    reader = moved(one, "receivers/a", tmp_path / "a", 0.5)
    sender = moved(one, "sender", tmp_path / "b", 0.5)
    for other, kept in ((reader, True), (sender, False)):
        mean = tmp_path / f"mean_{other.name}"
        made = latentwire(["average", str(tmp_path / "book"), str(other), "--out", str(mean)])
        assert ("codecs/fsq.safetensors" in made["files"]) is kept
        assert load_config_of(mean).codec.learned == (["fsq"] if kept else [])
        assert load_config_of(mean).evaluation.codec == ("fsq" if kept else "fp16")
        other_way = latentwire(["average", str(other), str(tmp_path / "book"), "--out", str(mean)])
        assert "codecs/fsq.safetensors" not in other_way["files"]


def test_what_has_no_mean_is_said(one: Path, tmp_path: Path) -> None:
    def fails(error: type[LatentWireError], message: str, *folders: Path, out: str = "mean") -> None:
        with pytest.raises(error, match=message):
            latentwire(["average", *map(str, folders), "--out", str(tmp_path / out)])
        assert not (tmp_path / "mean").exists()

    a = moved(one, "receivers/a", tmp_path / "a", 0.5)
    fails(ConfigError, "CKPT: two checkpoints or more", one)
    fails(ConfigError, "nothing to average, as they hold the same", one, one)
    fails(CheckpointError, "gone: no checkpoint there", one, tmp_path / "gone")
    fails(CheckpointError, "last holds the checkpoint that is read", one, a, out="a/last")
    other = saved_run(tmp_path / "other", lora={"r": 2, "alpha": 8})
    fails(CheckpointError, r"last: has lora\.r = 2, but .*last has 4", one, other)
    books = tmp_path / "others"
    info, files = read_info(one), {name: one / name for name in read_info(one)["files"]}
    for name, level in (("x", 1.0), ("y", 2.0)):
        book = {"codecs/fsq": {"level": torch.full((2,), level, dtype=torch.float16)}}
        others = {name: file for name, file in files.items() if name != "receivers/a.safetensors"}
        reader = {key: tensor + level for key, tensor in load_folder(one, ["receivers/a"])["receivers/a"].items()}
        save_folder(books / name, book | {"receivers/a": reader}, info, copied=others)
    fails(CheckpointError, r"codecs/fsq\.safetensors: codebooks .* differ", books / "x", books / "y")
    short = {key: tensor[:1] for key, tensor in load_folder(one, ["sender"])["sender"].items()}
    for name, head in (("w", 0), ("v", 1)):
        save_folder(books / name, {"x": {"heads": torch.tensor([head])}}, info, copied=files)
    fails(CheckpointError, r"x\.safetensors: heads of these checkpoints differs", books / "w", books / "v")
    save_folder(books / "z", {"sender": short}, info, copied={n: f for n, f in files.items() if n[:6] != "sender"})
    fails(CheckpointError, r"z/sender\.safetensors: has not the names and shapes", one, books / "z")


def trained_with(checkpoint: Path, folder: Path, dotted: str, value: object) -> Path:
    """The same checkpoint with another value in its configuration."""
    info = read_info(checkpoint)
    section, key = dotted.split(".")
    info["config"][section][key] = value
    files = {name: checked_file(checkpoint, name, file) for name, file in info["files"].items()}
    save_folder(folder, {}, info, copied=files)
    return folder


def test_a_mean_claims_no_training_that_only_some_of_its_checkpoints_had(one: Path, tmp_path: Path) -> None:
    key = "curriculum.train_only"
    for which in ("a", "b"):
        moved(one, f"receivers/{which}", tmp_path / f"moved_{which}", 0.5)
    moved(one, "receivers/b", tmp_path / "moved_again", 1.0)
    moved(one, "sender", tmp_path / "moved_sender", 1.0)
    of_a = trained_with(tmp_path / "moved_a" / "last", tmp_path / "of_a", key, ["a"])
    of_b = trained_with(tmp_path / "moved_b" / "last", tmp_path / "of_b", key, ["b"])
    again = trained_with(tmp_path / "moved_again" / "last", tmp_path / "again", key, ["b"])
    other = trained_with(tmp_path / "moved_sender" / "last", tmp_path / "other", key, ["b"])
    for several, claimed in (([of_a, of_b], None), ([of_b, one], None), ([of_b, other], None), ([of_b, again], ["b"])):
        latentwire(["average", *map(str, several), "--out", str(tmp_path / "mean")])
        assert load_config_of(tmp_path / "mean").curriculum.train_only == claimed


@pytest.mark.parametrize("dotted", ["model.receivers.a", "encoder.model", "encoder.companion"])
def test_another_model_under_a_name_is_refused(dotted: str, one: Path, tmp_path: Path) -> None:
    receivers = load_config_of(one).model.chosen
    llama, gemma = receivers["a"], receivers["b"]
    copy = str(shutil.copytree(llama, tmp_path / "copy"))
    if dotted == "encoder.companion":  # of 4 of the 16 dimensions
        one = trained_with(one, tmp_path / "one", "encoder.companion_d_z", 4)
    changed = moved(one, "receivers/a", tmp_path / "a", 0.5) / "last"
    receiver = dotted.endswith(".a")
    key = "model.receivers" if receiver else dotted
    for n, (before, now, same) in enumerate(
        (
            (llama, gemma, False),
            (llama, copy, True),
            (llama, str(tmp_path / "gone"), True),
            (llama, str(tmp_path), True),
            (llama, "org/model", True),
            ("smollm2-135m", "gemma3-270m", False),
            ("smollm2-135m", "org/model", False),
            ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        )
    ):
        first, second = (
            trained_with(checkpoint, tmp_path / f"{name}{n}", key, receivers | {"a": model} if receiver else model)
            for checkpoint, name, model in ((one, "first", before), (changed, "second", now))
        )
        words = ["average", str(first), str(second), "--out", str(tmp_path / f"mean{n}")]
        raw = read_info(second)["config"]
        raw["checkpoint"]["init_from"] = str(first)
        run = config_from_dict(raw, "run", {}, kept=True)
        if same:
            latentwire(words)
            Origin.of(run)
            continue
        with pytest.raises(CheckpointError, match=rf"second{n}: has {dotted} = '{now}', but .*first{n} has '{before}'"):
            latentwire(words)
        with pytest.raises(ConfigError, match=rf"first{n} was trained with {dotted} = '{before}', not '{now}'$"):
            Origin.of(run)
