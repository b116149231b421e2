"""Which models are on this machine, and how they are removed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from latentwire.backbone import store
from latentwire.backbone.aliases import Alias
from latentwire.backbone.load import resolve
from latentwire.backbone.store import StoredModel, remove_model, stored_models
from latentwire.core.errors import ModelError


def no_file(scratch: Path) -> Path:
    raise AssertionError("no model is unpacked here")


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two built-in models, one installed and one not; empty caches."""
    monkeypatch.setenv("LATENTWIRE_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    known = {
        "here": Alias("makers/here", "MIT", ("typer",), no_file),  # any package stands for one that holds a model
        "gone": Alias("makers/gone", "MIT", ("no-such-package",), no_file),
    }
    for module in ("store", "load"):
        monkeypatch.setattr(f"latentwire.backbone.{module}.ALIASES", known)
    return tmp_path


def keep(machine: Path, name: str, size: int) -> Path:
    folder = machine / "own" / "models" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_bytes(b"{}")
    (folder / "model.safetensors").write_bytes(bytes(size))
    return folder


def download(machine: Path, hub_id: str, size: int, file: str = "model.safetensors") -> Path:
    """As the Hub's client leaves a model: blobs, a snapshot of links, a reference."""
    repo = machine / "hub" / f"models--{hub_id.replace('/', '--')}"
    commit = hashlib.sha1(hub_id.encode()).hexdigest()
    snapshot = repo / "snapshots" / commit
    for folder in (repo / "blobs", snapshot, repo / "refs"):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    for name, data in (("config.json", b"{}"), (file, bytes(size))):
        (repo / "blobs" / name).write_bytes(data)
        (snapshot / name).symlink_to(repo / "blobs" / name)
    return snapshot


def found(name: str) -> StoredModel:
    (model,) = (model for model in stored_models() if model.name == name)
    return model


def test_built_in_models_are_listed_wherever_they_are(machine: Path) -> None:
    assert [(m.name, m.place) for m in stored_models()] == [("here", "package"), ("gone", "none")]
    assert found("here").bytes > 10_000 and found("gone").path is None
    snapshot = download(machine, "makers/gone", 500)
    assert found("gone") == StoredModel("gone", "hub", snapshot, 502) and resolve("gone") == snapshot
    folder = keep(machine, "gone", 1000)
    assert found("gone") == StoredModel("gone", "cache", folder, 1002) and resolve("gone") == folder


def test_other_models_follow_if_they_can_be_loaded(machine: Path) -> None:
    keep(machine, "story-0123456789ab", 10)
    (machine / "own" / "models" / ".story.lock").touch()
    download(machine, "makers/other", 20)
    download(machine, "makers/tokenizer", 20, "tokenizer.model")
    names = [(m.name, m.place) for m in stored_models()]
    assert names[2:] == [("story-0123456789ab", "cache"), ("makers/other", "hub")]


def test_removing(machine: Path) -> None:
    kept, snapshot = keep(machine, "gone", 10), download(machine, "makers/gone", 20)
    download(machine, "makers/other", 20)
    assert remove_model("gone").path == kept and not kept.exists()
    assert remove_model("gone").path == snapshot and not snapshot.exists()  # the next place where it was
    assert remove_model("makers/other").bytes == 22
    assert list((machine / "own" / "models").iterdir()) == [] == list((machine / "hub").glob("models--*"))
    for name, message in (
        ("gone", "not on this machine"),
        ("here", "pip uninstall typer"),
        ("../own", "not on this machine"),
    ):
        with pytest.raises(ModelError, match=message):
            remove_model(name)
    assert store.models_dir().is_dir()
