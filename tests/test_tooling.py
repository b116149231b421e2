"""The commands that the README names exist, CI runs them, and the two lists of requirements say the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests import ROOT


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


def test_a_python_that_is_only_a_name_is_passed_over(tmp_path: Path) -> None:
    """Version managers put stand-ins on the PATH that do nothing but fail."""
    for name in ("python3.11", "python3.12", "python3.13"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
        (tmp_path / name).chmod(0o755)
    script = f'source "{ROOT}/scripts/setup_env.sh"; find_python'
    environment = {"PATH": f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}

    def found(**more: str) -> str:
        done = subprocess.run(["bash", "-c", script], env=environment | more, capture_output=True, text=True)
        return done.stdout.strip()

    assert Path(found()).name == "python3" and str(tmp_path) not in found()
    old = tmp_path / "active" / "bin" / "python"
    old.parent.mkdir(parents=True)
    old.write_text("#!/bin/sh\nexit 1\n")  # what one older than 3.11 says
    old.chmod(0o755)
    active = environment | {"VIRTUAL_ENV": str(tmp_path / "active"), "PATH": f"{old.parent}:/usr/bin:/bin"}
    entered = script.replace("find_python", "setup_env")
    done = subprocess.run(["bash", "-c", entered], env=active, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "the active environment" in done.stderr
    (tmp_path / "own").symlink_to(sys.executable)
    assert found(PYTHON=str(tmp_path / "own")) == str(tmp_path / "own")
