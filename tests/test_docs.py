"""The code in docs/api.md and README.md runs, on tiny models in the place of the real ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from latentwire import Wire
from latentwire.core.errors import WireError
from tests.cli.test_commands import arguments, models, trained

__all__ = ["models", "trained"]
ROOT = Path(__file__).resolve().parents[1]


def test_the_code_of_the_api_page_runs(models: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    code = "\n".join(blocks).replace("checkpoints/default", trained["checkpoint"]).replace('"gemma3-270m"', '"qwen"')
    flags = arguments(models, out_dir=tmp_path / "try")
    code, changed = re.subn(r"train\(\[.*?\]\)", f"train({flags!r})", code)
    assert changed == 1
    names: dict[str, Any] = {}
    exec(compile(code.replace('"20", "--fresh_eval"', '"4", "--fresh_eval", "--quiet"'), "docs/api.md", "exec"), names)
    assert len(names["answers"]) == 1 and names["results"]["samples"] == 4
    with pytest.raises(WireError, match="width 8; the reader expects 16"):
        names["receiver"].answer(Wire.of(names["latents"][:, :8]), "Who?")
