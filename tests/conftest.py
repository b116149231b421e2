"""Which tests are fast, and the tiny run that tests of several files begin with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)  # the same examples, on slow machines too
settings.load_profile("same")

TESTS = Path(__file__).parent
FOLDERS = ("checkpoint", "cli", "integration", "rivals", "serving", "training")
FILES = ("evaluation/test_evaluate.py", "evaluation/test_harness.py", "report/test_browser.py")
"""What runs commands, trains or serves takes seconds and more; tests of a part alone are fast."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.relative_to(TESTS)
        if len(path.parts) == 1 or any(path.is_relative_to(slow) for slow in FOLDERS + FILES):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def results_kept() -> dict[str, Any]:
    """What the training behind `trained` returned, once it has been done."""
    return {}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models, empty but for them. All test files have it under the same path, which runs name."""
    from tests.tiny import save_tiny

    folder = tmp_path_factory.getbasetemp() / "models"
    shutil.rmtree(folder, ignore_errors=True)
    for family in ("llama", "qwen3", "gemma3"):
        save_tiny(family, folder / family)
    return folder


@pytest.fixture(scope="module")
def trained(models: Path, results_kept: dict[str, Any]) -> dict[str, Any]:
    """What the training of `models / "run"` returned; the run is made once and is a fresh copy for every test file."""
    from latentwire.train import main
    from tests.commands import arguments

    made = models.with_name("trained")
    if not results_kept:
        results_kept |= main(arguments(models, out_dir=models / "run"))
        for name in ("run", "cache"):
            shutil.copytree(models / name, made / name)
    else:
        shutil.copytree(made, models, dirs_exist_ok=True)
    return results_kept


@pytest.fixture
def story(tmp_path: Path) -> Path:
    """A text file."""
    from tests.commands import STORY

    path = tmp_path / "story.txt"
    path.write_text(STORY)
    return path
