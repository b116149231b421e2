"""The code in the docs runs, on tiny models in the place of the real ones; what they say to do can be done."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentwire import Wire
from latentwire.cli.main import main as latentwire
from latentwire.core.errors import WireError
from latentwire.eval import main as eval_main
from tests.cli.test_commands import arguments, models, trained
from tests.tiny import save_tiny

__all__ = ["models", "trained"]
ROOT = Path(__file__).resolve().parents[1]
STORY = "Mira lives in Orlin near the river. She sells red lamps on the hill."


def test_the_code_of_the_python_page_runs(models: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    code = "\n".join(blocks).replace("checkpoints/default", trained["checkpoint"]).replace('"gemma3-270m"', '"qwen"')
    flags = arguments(models, out_dir=tmp_path / "try")
    code, changed = re.subn(r"train\(\[.*?\]\)", f"train({flags!r})", code)
    assert changed == 1
    names: dict[str, Any] = {}
    exec(
        compile(code.replace('"20", "--fresh_eval"', '"4", "--fresh_eval", "--quiet"'), "docs/python.md", "exec"), names
    )
    assert len(names["answers"]) == 1 and names["results"]["samples"] == 4
    with pytest.raises(WireError, match="width 8; the reader expects 16"):
        names["receiver"].answer(Wire.of(names["latents"][:, :8]), "Who?")


TRY = """
from latentwire.config import load_config
from latentwire.model.receiver import LATENT
from tests.features.test_matrix import dead_parameters, nll, latents
from tests.systems import small_config, small_system

assert load_config(None, [], {"features.use_drain": True}).drain.len == 1
model = {"dtype": "float32", "receivers": {"a": "x"}}
config = small_config(model=model, features={"use_drain": True}, drain={"len": 2})
system, other = small_system(config, ("gemma3",)), small_system(config, ("gemma3",), seed=1)
receiver = system.receivers["a"]
assert receiver.extra_positions == 2 and not list(dead_parameters(system))
z, counts = latents(system)
assert receiver.read_latents(z, counts).mask.sum(1).tolist() == (len(receiver.prompt.head) + counts + 2).tolist()
assert (system.state_dict()["receivers/a"]["drain.keys"] != other.state_dict()["receivers/a"]["drain.keys"]).any()
"""


def test_the_page_on_features_can_be_followed(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "add_a_feature.md").read_text()
    shutil.copytree(ROOT / "latentwire", tmp_path / "latentwire", ignore=shutil.ignore_patterns("__pycache__"))
    edits = re.findall(
        r"(?:(Behind|Before) `([^`]+)` in\s+)?`(latentwire/[^`]+)`:\n\n```(?:python)?\n(.*?)```", page, re.DOTALL
    )
    assert len(edits) == 7
    lines = 0
    for where, line, file, code in edits:
        path = tmp_path / file
        lines += code.count("\n")
        if not where:
            path.parent.mkdir(exist_ok=True)
            path.write_text(code)
            continue
        text = path.read_text()
        assert text.count(f"{line}\n") == 1, line
        path.write_text(text.replace(f"{line}\n", f"{line}\n{code}" if where == "Behind" else f"{code}{line}\n"))
    assert lines <= 60
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n{TRY}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_the_commands_of_the_page_on_receivers_can_be_given(
    models: Path, trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "add_a_receiver.md").read_text()
    save_tiny("gemma3", tmp_path / "gemma3")
    monkeypatch.chdir(tmp_path)
    passage = {"context": STORY, "qas": [{"question": "Who?", "answers": [{"text": "Mira"}]}]}
    for name in ("squad_train.json", "squad_dev.json"):
        Path(name).write_text(json.dumps({"data": [{"paragraphs": [passage] * 6}]}))
    Path("paragraphs.txt").write_text(f"{STORY}\n" * 4)
    Path("story.txt").write_text(STORY)
    page = page.replace("runs/default", trained["checkpoint"]).replace("Qwen/Qwen2.5-0.5B-Instruct", "gemma3")
    page = page.replace("qwen", "new")
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.replace("\\\n", "").splitlines()]
    given: dict[tuple[str, ...], Any] = {}
    for command in commands:
        main = latentwire if command[0] == "latentwire" else eval_main
        given[tuple(command[:2])] = main(command[1 if command[0] == "latentwire" else 3 :])
    assert set(given) == {("latentwire", verb) for verb in ("encode", "add-receiver", "decode")} | {("python", "-m")}
    assert given["latentwire", "decode"][0]["answers"][0]["source"] == "latents"
    assert set(given["latentwire", "add-receiver"]["evaluation"]["receivers"]) == {"new"}
    assert set(given["python", "-m"]["receivers"]) == {"llama", "qwen", "new"}

    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code.replace("runs/with-new", "runs/again"), "docs/add_a_receiver.md", "exec"), names)
    assert Path(names["run"]["checkpoint"], "receivers", "new.safetensors").is_file()


def test_the_api_reference_is_that_of_the_docstrings(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "write_api_docs.py", tmp_path / "api.md"], check=True)
    written = (ROOT / "docs" / "api.md").read_text()
    assert written == (tmp_path / "api.md").read_text(), "run: python scripts/write_api_docs.py"
    assert "read_own(texts: Sequence[ReceiverText]) -> Context" in written
