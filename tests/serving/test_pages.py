"""The pages on serving and on corpora can be followed, on tiny models in the place of the real ones."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from latentwire.cli.ask import ask
from latentwire.cli.index import index as index_verb
from latentwire.cli.main import main as latentwire
from latentwire.cli.serve import serve
from latentwire.serving.engine import Limits
from latentwire.wire.message import Wire
from scripts.measure_index import app as measure_index
from tests import ROOT
from tests.serving.test_process import process
from tests.systems import saved_run

STORY = "The Harrow Point Light was first lit in October 1871. Its tower was designed by Edith Calloway."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("page"))


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def blocks(name: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", page(name), re.DOTALL)


def flags(*verbs: Any) -> set[str]:
    """The options of verbs, as they are typed."""
    found = {f"--{name.replace('_', '-')}" for verb in verbs for name in verb.__annotations__}
    return found | {flag.replace("-", "_").replace("__", "--") for flag in found} | {"--override", "--json", "--out"}


def test_the_options_that_the_pages_name_exist() -> None:
    named = set(re.findall(r"--[a-z_]+", page("serving.md"))) - {"--data"}
    assert named - flags(serve) == {"--question", "--clients", "--seconds"}  # the load tester's
    measuring = {word for option in get_command(measure_index).params for word in option.opts}
    assert set(re.findall(r"--[a-z_]+", page("corpora.md"))) <= flags(index_verb, ask) | measuring


def test_the_limits_on_the_page_are_those_of_the_command_and_of_the_engine() -> None:
    named = re.findall(r"^\| `--(\w+)` \| ([\d.]+) \|", page("serving.md"), re.MULTILINE)
    defaults = {name: signature(serve).parameters[name].default for name, _ in named}
    assert {name: float(value) for name, value in named} == defaults
    assert Limits(*defaults.values()) == Limits()


def test_the_page_on_serving_can_be_followed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, *commands = blocks("serving.md", "bash")
    assert start.startswith("latentwire serve ") and len(commands) == 4
    (tmp_path / "story.txt").write_text(STORY)
    (code,) = blocks("serving.md", "python")
    with process(run) as (_, client):
        environment = os.environ | {"URL": str(client.base_url).rstrip("/"), "PYTHONPATH": str(ROOT)}

        def typed(command: str) -> str:
            command = command.replace("gemma3-270m", "b").replace("--seconds 20", "--seconds 0.5")
            command = command.replace("python scripts", f"{sys.executable} {ROOT}/scripts")
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        typed(commands[0])
        assert str(Wire.from_bytes((tmp_path / "story.lw").read_bytes()).codec).startswith("int8")
        answers = json.loads(typed(commands[1]))["answers"]
        assert len(answers) == 2 and {answer["source"] for answer in answers} == {"latents"}
        streamed = typed(commands[2])
        assert streamed.startswith("event: delta\n")
        # Not the words: random models' near ties may end otherwise alone than in a batch.
        (last,) = json.loads(streamed.split("event: done\ndata: ")[1])["answers"]
        assert {**last, "answer": ""} == {**answers[1], "answer": ""}
        loaded = json.loads(typed(commands[3]))
        assert loaded["lost"] == 0 and set(re.findall(r"`(\w+)`", page("serving.md").split("in its JSON")[1])) == {
            "held", "over", "p50_s", "p99_s", "refused_p99_s", "wrong", "counted_by_service", "lost", "not_received",
        }  # fmt: skip
        monkeypatch.setenv("URL", environment["URL"])
        names: dict[str, Any] = {}
        exec(compile(code.replace("gemma3-270m", "b"), "docs/serving.md", "exec"), names)
        assert names["answers"][0]["source"] == "latents"


def test_the_page_on_corpora_can_be_followed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"id": "light", "text": STORY}, {"id": "lamps", "text": "Mira sells red lamps on the hill."}]
    (tmp_path / "articles.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for command in blocks("corpora.md", "bash"):
        result = latentwire([*shlex.split(command.replace("gemma3-270m", "b"))[1:], "--ckpt", str(run)])
    assert result["questions"][0]["answers"][0]["documents"][0]["id"] == "light"
    (code,) = blocks("corpora.md", "python")
    names: dict[str, Any] = {}
    code = code.replace("checkpoints/default", str(run)).replace("gemma3-270m", "b")
    exec(compile(code, "docs/corpora.md", "exec"), names)
    assert names["hits"][0].id == "light" and names["reply"].source == "latents"
    for name in ("wires", "bm25", "index.json"):
        assert (tmp_path / "articles.index" / name).exists() and f"`{name}" in page("corpora.md")
