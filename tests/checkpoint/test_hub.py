"""Checkpoints in repositories on the Hub: pushed, and read by each end alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire import Receiver, Sender
from latentwire.backbone.store import stored_models
from latentwire.checkpoint.index import find_checkpoint, load_config_of
from latentwire.checkpoint.push import push_to_hub
from latentwire.checkpoint.tensors import read_info
from latentwire.cli.main import main as latentwire
from latentwire.core.errors import CheckpointError
from latentwire.core.names import INDEX
from latentwire.eval import main as eval_main
from latentwire.model.pretrained import load_checkpoint, save_checkpoint
from latentwire.report.card import model_card
from tests.commands import fails
from tests.hub import LocalHub, local_hub
from tests.systems import saved_run

NAME = "acme/wire"
TEXT = "Mira lives in Orlin near the river and sells red lamps on the hill."
SENDER = [INDEX, "sender.safetensors"]
READER = ["receivers/b.safetensors", "baselines/b-text.safetensors"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    out = run.parent / "exported"
    latentwire(["export", "--ckpt", str(run), "--out", str(out)])
    (out / "notes.txt").write_text("mine")
    return out


@pytest.fixture
def models(run: Path) -> dict[str, Any]:
    """Where the models lie, of which an export keeps only the names."""
    folders = {"a": str(run.parent / "llama"), "b": str(run.parent / "gemma3")}
    return {"encoder.model": folders["a"], "model.receivers": folders}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    monkeypatch.chdir(tmp_path)
    return local_hub(tmp_path / "hub", monkeypatch)


def test_each_end_fetches_its_own_files_once(hub: LocalHub, exported: Path, models: dict[str, Any]) -> None:
    address = push_to_hub(exported, NAME, private=True)
    assert address.startswith(f"https://hub/{NAME}/commit/") and hub.private == {NAME: True}
    assert hub.files(NAME) == {*read_info(exported)["files"], INDEX, "README.md"}
    wire = Sender.from_pretrained(NAME, models).encode(TEXT)
    assert hub.fetched == SENDER
    assert wire == Sender.from_pretrained(exported, models).encode(TEXT)
    receiver = Receiver.from_pretrained(NAME, "b", models)
    assert sorted(hub.fetched[2:]) == sorted([INDEX, *READER])
    reply = receiver.answer(wire, "Where?", 8)
    assert reply == Receiver.from_pretrained(exported, "b", models).answer(wire, "Where?", 8)
    assert reply.source == "latents"
    assert NAME not in [model.name for model in stored_models()]  # it is no language model

    hub.fetched.clear()
    hub.answers = False
    assert Sender.from_pretrained(NAME, models).encode(TEXT) == wire and not hub.fetched
    with pytest.raises(CheckpointError, match=r"receivers/a\.safetensors .no answer: no route to host") as caught:
        Receiver.from_pretrained(NAME, "a", models)
    assert "\n" not in str(caught.value)


def test_what_is_to_be_private_does_not_go_to_a_public_place(hub: LocalHub, exported: Path) -> None:
    push_to_hub(exported, NAME)
    with pytest.raises(CheckpointError, match=r"--private: .* is there already, and public; nothing was sent"):
        push_to_hub(exported, NAME, private=True)
    assert len(set(hub.refs[NAME].values())) == 1


def test_a_whole_checkpoint_and_copies_of_it(
    hub: LocalHub, exported: Path, models: dict[str, Any], tmp_path: Path
) -> None:
    (exported / "training.jsonl").write_text('{"stage": "end_to_end", "step": 1}\n')
    push_to_hub(exported, NAME)
    folder = find_checkpoint(NAME)
    assert hub.fetched == [INDEX] and hub.private == {NAME: None}
    only = {"curriculum.train_only": ["b"], "checkpoint.init_from": NAME}
    whole = load_checkpoint(exported, load_config_of(exported, models | only), ["b"])
    with torch.no_grad():
        next(iter(whole.receivers["b"].reader.parameters())).add_(1)
    save_checkpoint(tmp_path / "new", whole, before=folder)
    new, old = read_info(tmp_path / "new")["files"], read_info(exported)["files"]
    assert set(hub.fetched) == {INDEX, *old}
    assert {name for name in old if new[name] == old[name]} == {
        name for name in old if name != "receivers/b.safetensors"
    }
    latentwire(["export", "--ckpt", NAME, "--out", str(tmp_path / "again")])
    assert (tmp_path / "again" / "training.jsonl").read_text() == (exported / "training.jsonl").read_text()


def test_revisions(hub: LocalHub, exported: Path, models: dict[str, Any], tmp_path: Path) -> None:
    push_to_hub(exported, NAME)
    first = hub.refs[NAME]["main"]
    only = tmp_path / "only"
    info = read_info(exported)
    info["files"] = {name: file for name, file in info["files"].items() if "/a" not in name}
    for name in (*info["files"], "README.md"):
        (only / name).parent.mkdir(parents=True, exist_ok=True)
        (only / name).write_bytes((exported / name).read_bytes())
    (only / INDEX).write_text(json.dumps(info))
    push_to_hub(only, NAME)
    assert not any("/a" in name for name in hub.files(NAME))  # weights of before are gone
    with pytest.raises(CheckpointError, match="has no receiver 'a'"):
        Receiver.from_pretrained(NAME, "a", models)
    for revision in ("v1", first):
        assert Receiver.from_pretrained(f"{NAME}@{revision}", "a", models).name == "a"
    hub.answers = False
    asked = len(hub.asked)
    assert find_checkpoint(Path(f"{NAME}@{first}")).name == first
    assert len(hub.asked) == asked  # a commit that is here does not change
    hub.answers = True
    with pytest.raises(CheckpointError, match=f"{NAME}@v9: .*no such revision there"):
        find_checkpoint(Path(f"{NAME}@v9"))


def test_what_is_not_there_is_said_in_one_line(hub: LocalHub, exported: Path, tmp_path: Path) -> None:
    for name, reason in {
        "acme/gone": "acme/gone: not on this machine, and the Hub did not give its checkpoint.json .no such repository",
        "acme/a--b": "not the name of a repository",
        "gone": "gone: no checkpoint there",
        "a/b/c": "a/b/c: no checkpoint there",
        "../up": "no checkpoint there",
    }.items():
        with pytest.raises(CheckpointError, match=reason) as caught:
            find_checkpoint(name)
        assert "\n" not in str(caught.value)
    assert hub.asked == ["acme/gone"]
    Path("runs").mkdir()
    with pytest.raises(CheckpointError, match="runs/ is a folder here, so the Hub was not asked"):
        find_checkpoint(Path("runs/mistyped"))
    assert hub.asked == ["acme/gone"]
    push_to_hub(exported, NAME)
    (hub.root / "repositories" / NAME / hub.refs[NAME]["main"] / INDEX).unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint\.json .no such file there"):
        find_checkpoint(NAME)


def test_only_a_whole_export_is_pushed(
    hub: LocalHub, run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no README.md, so this is not an export" in fails(latentwire, ["push", str(run / "last"), NAME], capsys)
    assert "not a checkpoint" in fails(latentwire, ["push", str(tmp_path), NAME], capsys)
    weights = exported / "sender.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert "SHA-256" in fails(latentwire, ["push", str(exported), NAME], capsys)
    finally:
        weights.write_bytes(whole)
    results = exported / "eval.json"
    results.write_text(json.dumps({"manifest": {"config": {"checkpoint": {"runs_dir": "/home/me/runs"}}}}))
    try:
        assert "names folders of this machine" in fails(latentwire, ["push", str(exported), NAME], capsys)
        results.write_text(json.dumps({"manifest": {"config": {"checkpoint": {}}}}))
        push_to_hub(exported, "acme/measured")
        assert hub.private == {"acme/measured": None}
    finally:
        results.unlink()
    hub.writable = False
    assert "(no right to do that; hf auth login)" in fails(latentwire, ["push", str(exported), NAME], capsys)


def test_results_of_a_checkpoint_on_the_hub_need_a_folder(
    hub: LocalHub, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push_to_hub(exported, NAME)
    assert "--out: acme/wire is on the Hub" in fails(eval_main, ["--ckpt", NAME], capsys)


def test_the_card_says_to_the_hub_what_it_is(exported: Path) -> None:
    info = read_info(exported)
    info["config"]["model"]["receivers"] = {"one": "smollm2-135m", "two": "Qwen/Qwen2.5-0.5B", "three": "/my/model"}
    info["config"]["encoder"]["model"] = "smollm2-135m"
    info["config"]["data"] |= {"dataset": "squad"}
    _, head, card = model_card(info, None).split("---\n", 2)
    values = {key: json.loads(value) for key, value in (line.split(": ", 1) for line in head.splitlines())}
    assert values["base_model"] == ["HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-0.5B"]
    assert values["datasets"] == ["rajpurkar/squad"] and values["library_name"] == "latentwire"
    assert 'Receiver.from_pretrained(checkpoint, "one")' in card
