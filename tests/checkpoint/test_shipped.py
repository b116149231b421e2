"""The checkpoints in this repository: whole, small, and described by what was measured on these very files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from latentwire.checkpoint.export import measured_on
from latentwire.checkpoint.index import load_config_of, sender_fingerprint
from latentwire.checkpoint.tensors import load_folder, read_info
from latentwire.cli.options import ROOT
from latentwire.core.json_files import read_json
from latentwire.report.card import model_card

SHIPPED = sorted(path.parent for path in ROOT.glob("checkpoints/*/checkpoint.json"))
MOST, MOST_TOGETHER = 45e6, 120e6
"""Bytes of one file, and of all."""


def test_they_stay_small() -> None:
    files = {path.resolve() for path in ROOT.glob("checkpoints/**/*") if path.is_file()}  # one sender may serve two
    sizes = [path.stat().st_size for path in files if path.is_relative_to(ROOT / "checkpoints")]
    assert len(sizes) == len(files) and max(sizes) < MOST and sum(sizes) < MOST_TOGETHER


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_it_is_whole(folder: Path) -> None:
    state = load_folder(folder)  # sizes and hashes of all files
    assert set(state) >= {"sender"} | {f"receivers/{name}" for name in load_config_of(folder).model.chosen}
    assert len(sender_fingerprint(folder)) > 0


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_its_figures_are_its_own(folder: Path) -> None:
    info, measured = read_info(folder), read_json(folder / "eval.json")
    assert measured_on(measured["manifest"]["checkpoint"], info["files"])
    assert (folder / "README.md").read_text() == model_card(info, measured)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda path: path.name)
def test_it_names_no_machine(folder: Path) -> None:
    for path in [*folder.glob("*.json*"), *folder.glob("*.md")]:
        assert not re.search(r'"/|\s/(home|root|tmp|work|Users)/', path.read_text()), path.name
