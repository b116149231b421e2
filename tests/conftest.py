"""Which tests are fast: those of a part alone. What runs commands, trains or serves takes seconds and more."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FOLDERS = ("checkpoint", "cli", "integration", "rivals", "serving", "training")
FILES = ("evaluation/test_evaluate.py", "evaluation/test_harness.py", "report/test_browser.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.relative_to(TESTS)
        if len(path.parts) == 1 or any(path.is_relative_to(slow) for slow in FOLDERS + FILES):
            item.add_marker(pytest.mark.slow)
