"""The commands that the README names exist, CI runs them, and the two lists of requirements say the same."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def names(lines: list[str]) -> dict[str, str]:
    """Package -> version condition."""
    found = (re.fullmatch(r"([A-Za-z0-9_-]+)(.*)", line.split("#")[0].strip()) for line in lines)
    return {m[1].lower(): m[2] for m in found if m}


def test_ci_runs_the_readme_s_test_command() -> None:
    command = "bash scripts/run_tests.sh"
    assert command in (ROOT / "README.md").read_text()
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_scripts_and_files_that_the_readme_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for path in re.findall(r"(?:scripts|configs|docs)/[\w/]+\.(?:sh|json|md)", text):
        assert (ROOT / path).is_file(), path
    for package in re.findall(r"^    (latentwire/\w+) ", text, re.MULTILINE):
        assert (ROOT / package).is_dir(), package


def test_requirements_agree_with_the_package() -> None:
    package = names(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    plain = names((ROOT / "requirements.txt").read_text().splitlines())
    assert package.pop("torch") and plain.pop("torch").startswith("==")
    assert package == plain


def test_nothing_is_unpickled() -> None:
    for path in (ROOT / "latentwire").rglob("*.py"):
        assert not re.search(r"\btorch\.load\(|\bpickle\b", path.read_text()), path
