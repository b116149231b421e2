"""The code in the docs runs, on tiny models in the place of the real ones; what they say to do can be done."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import launch_command_parser

from latentwire import Wire
from latentwire.cli.main import main as latentwire
from latentwire.config.ablation import load_ablation
from latentwire.config.sections.features import FeaturesConfig
from latentwire.core.errors import LatentWireError, WireError
from latentwire.eval import main as eval_main
from latentwire.train import main as train_main
from tests import ROOT
from tests.artifacts import run_folder
from tests.commands import arguments
from tests.hub import local_hub
from tests.systems import saved_run
from tests.tiny import save_tiny

STORY = "Mira lives in Orlin near the river. She sells red lamps on the hill."


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("pages"))


def commands_of(page: str) -> list[str]:
    """The command lines of a page."""
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", "").splitlines()]


def test_the_page_reads_on_where_the_receiver_computes_in_bf16(trained: dict[str, Any]) -> None:
    """The built-in models do, on processors that multiply it; their LoRA stays in fp32."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    code = "\n".join(blocks[:3]).replace("checkpoints/default", trained["checkpoint"])
    code = code.replace('"gemma3-270m")', '"qwen", {"model.dtype": "bfloat16"})')
    names: dict[str, Any] = {}
    exec(compile(code, "docs/python.md", "exec"), names)
    assert names["receiver"].lm.dtype == torch.bfloat16
    assert names["out"].shape[1] > len(names["tail"])  # which tokens is chance: random weights, sums in another order


def test_the_code_of_the_python_page_runs(models: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    code = "\n".join(blocks).replace("checkpoints/default", trained["checkpoint"]).replace('"gemma3-270m"', '"qwen"')
    flags = arguments(models, out_dir=tmp_path / "try")
    code, changed = re.subn(r"train\(\[.*?\]\)", f"train({flags!r})", code)
    assert changed == 1
    names: dict[str, Any] = {}
    exec(
        compile(code.replace('"20", "--fresh_eval"', '"4", "--fresh_eval", "--quiet"'), "docs/python.md", "exec"), names
    )
    assert len(names["answers"]) == 1 and names["results"]["samples"] == 4
    plain = names["out"][0, len(names["tail"]) :].tolist()
    assert [names["receiver"].prompt.read(plain)] == names["answers"]
    with pytest.raises(WireError, match="width 8; the reader expects 16"):
        names["receiver"].answer(Wire.of(names["latents"][:, :8]), "Who?")


FEATURE = """
from latentwire.config import load_config
from latentwire.core.names import LATENT
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
CODEC = """
import shlex
import numpy as np
from latentwire.cli.main import main
from latentwire.core.errors import WireError
from latentwire.wire.message import Wire

z = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
wire = Wire.of(z, "sign")
got = Wire.from_bytes(wire.to_bytes())
assert got.codec.id == 10 and (np.sign(got.latents) == np.sign(z)).all()
assert np.allclose(abs(got.latents), abs(z).mean(1, keepdims=True), rtol=1e-3)
assert (Wire.of(got.latents, "sign").latents == got.latents).all()
(payload,) = got.codec.encode(z)
assert len(payload) == 5 * 2 + 8
strange = (bytes([255, 255]), bytes([0, 188]))  # NaN, and a number below zero
for bad in (payload[:-1], payload[:-1] + bytes([255]), *(scale + payload[2:] for scale in strange)):
    try:
        got.codec.decode([bad], 5, 12)
    except WireError:
        continue
    raise AssertionError(bad)
for command in COMMANDS:
    assert main(shlex.split(command)[1:])
"""
ENCODER = """
import torch
from latentwire.backbone.text_model import TextModel
from latentwire.config import load_config
from latentwire.encoder.registry import ENCODERS
from latentwire.model.receiver import Receiver
from latentwire.model.sender import Sender
from latentwire.model.system import LatentWire
from latentwire.training.stages.scratch import standardise
from tests.features.test_matrix import dead_parameters
from tests.systems import small_config, small_passages
from tests.tiny import bert_tokenizer, tiny_bert, tiny_lm

long = {"encoder.type": "window-mean", "data.max_context_tokens": 2000}  # it has no queries that could be too few
assert load_config(None, [], long).encoder.type == "window-mean"
config = small_config(
    model={"dtype": "float32", "receivers": {"a": "x"}}, encoder={"type": "window-mean"}
)
encoder = ENCODERS["window-mean"](TextModel("tiny-bert", tiny_bert(0), bert_tokenizer()), config)
system = LatentWire(config, Sender(encoder, config), {"a": Receiver("a", tiny_lm("llama", 0), config)})
prepared = [system.prepare(passage) for passage in small_passages(6)]
standardise(system, prepared)
z, counts = system.sender.latents_of([sent for sent, _ in prepared])
assert counts.tolist() == [-(-sent.tokens // 4) for sent, _ in prepared]
rows = torch.cat([row[:count] for row, count in zip(z, counts.tolist())]).detach()
assert rows.mean(0).abs().max() < 1e-3 and (rows.std(0, unbiased=False) - 1).abs().max() < 1e-2
alone = encoder([encoder.features([prepared[0][0]])[0]], [int(counts[0])])[0]
assert torch.allclose(alone, z[0, : counts[0]], atol=1e-4)
assert not list(dead_parameters(system))
"""


@pytest.mark.parametrize(
    ("name", "edits", "most_lines", "code"),
    [
        ("add_a_feature.md", 8, 60, FEATURE),
        ("add_a_codec.md", 3, 40, CODEC),
        ("add_an_encoder.md", 4, 65, ENCODER),
    ],
)
def test_what_a_page_adds_works(name: str, edits: int, most_lines: int, code: str, tmp_path: Path) -> None:
    """The page's edits are made in a copy of the package, where the code then runs."""
    page = (ROOT / "docs" / name).read_text()
    shutil.copytree(ROOT / "latentwire", tmp_path / "latentwire", ignore=shutil.ignore_patterns("__pycache__"))
    found = re.findall(
        r"(?:(Behind|Before|In place of) `([^`]+)` in\s+)?`(latentwire/[^`]+)`:\n\n```(?:python)?\n(.*?)```",
        page,
        re.DOTALL,
    )
    assert len(found) == edits
    lines = 0
    for where, line, file, new in found:
        path = tmp_path / file
        lines += new.count("\n")
        if not where:
            path.parent.mkdir(exist_ok=True)
            path.write_text(new)
            continue
        text = path.read_text()
        assert text.count(f"{line}\n") == 1, line
        now = {"Behind": f"{line}\n{new}", "Before": f"{new}{line}\n", "In place of": new}[where]
        path.write_text(text.replace(f"{line}\n", now))
    assert lines <= most_lines
    start = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\nCOMMANDS = {commands_of(page)!r}\n"
    run = subprocess.run(
        [sys.executable, "-c", start + code],
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
    qas = [{"question": "Who?", "answers": [{"text": "Mira"}]}]
    paragraphs = [{"context": f"{STORY} It was day {day}.", "qas": qas} for day in range(6)]
    for name in ("squad_train.json", "squad_dev.json"):
        Path(name).write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    Path("paragraphs.txt").write_text(f"{STORY}\n" * 4)
    Path("story.txt").write_text(STORY)
    page = page.replace("checkpoints/default", trained["checkpoint"]).replace("Qwen/Qwen2.5-0.5B-Instruct", "gemma3")
    page = page.replace("qwen", "new")
    commands = [shlex.split(line) for line in commands_of(page)]
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
    assert "answer(message: Message, question: str, max_new_tokens: int = 24, candidates: int = 1) -> Reply" in written


@pytest.mark.parametrize("name", ["index.md", "python.md", "hub.md"])
def test_the_commands_of_a_page_on_messages_can_be_given(
    name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, in one folder, and then the page's Python; with tiny models in the place of the built-in ones."""
    monkeypatch.chdir(tmp_path)
    hub = local_hub(tmp_path / "hub", monkeypatch)
    for path, target in {"configs": ROOT / "configs", "runs/default": run}.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).symlink_to(target)
    for file in ("notes.txt", "story.txt"):
        Path(file).write_text(STORY)
    for file in ("squad_train.json", "squad_dev.json"):
        shutil.copy(ROOT / "examples" / "questions.json", file)
    folders = {"a": str(run.parent / "llama"), "b": str(run.parent / "gemma3")}
    models = {"encoder.model": folders["a"], "model.receivers": folders}  # an export keeps their names alone
    overrides = [f"--override={key}={json.dumps(value)}" for key, value in models.items()]
    verbs = []
    for line in commands_of((ROOT / "docs" / name).read_text()):
        words = shlex.split(line.replace("gemma3-270m", "b"))
        if words[0] == "pip":
            assert line in " ".join((ROOT / "README.md").read_text().split()), "as in the README"
        elif words[0] == "latentwire":
            verbs.append(words[1])
            words += {"train": ["--dry-run"], "ask": overrides}.get(words[1], [])
            if words[1] in ("ask", "encode", "decode") and "--ckpt" not in words:
                words += ["--ckpt", str(run)]
            latentwire(words[1:])
        else:
            subprocess.run(["bash", "-c", line], check=True)
    assert (
        verbs
        == {
            "index.md": ["ask", "encode", "inspect", "decode", "train", "train"],
            "python.md": ["encode", "inspect", "decode"],
            "hub.md": ["export", "push", "ask"],
        }[name]
    )
    if name == "python.md":  # its Python has a test of its own
        return
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), re.DOTALL))
    code = code.replace("checkpoints/default", str(run)).replace('"gemma3-270m"', '"b"')
    if name == "hub.md":
        code, changed = re.subn(r"from_pretrained\(([^)]*)\)", rf"from_pretrained(\1, changes={models!r})", code)
        assert changed == 2
    names: dict[str, Any] = {}
    exec(compile(code, f"docs/{name}", "exec"), names)
    message = names["message"] if name == "index.md" else Wire.from_bytes(names["message"])
    assert names["receiver"].answer(message, "Who?").source == "latents"
    assert not hub.refs or {"README.md", "checkpoint.json"} <= hub.files("my-name/my-wire")


@pytest.mark.parametrize("name", ["report.md", "ablation.md"])
def test_the_commands_of_a_page_on_runs_can_be_given(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    for folder in ("default", "other"):
        run_folder(tmp_path / "runs" / folder)
    for line in commands_of((ROOT / "docs" / name).read_text()):
        words = shlex.split(line)
        if words[:2] == ["latentwire", "report"]:
            latentwire(words[1:])
        elif words[0] == "latentwire":
            latentwire([*words[1:], "--dry-run"])
        else:
            assert words[:3] == ["python", "-m", "latentwire.cli.train"]
            train_main([*words[3:], "--dry-run"])
    shown = capsys.readouterr().out
    assert Path("report/report.html").is_file() if name == "report.md" else "window=" in shown


@pytest.mark.parametrize("name", ["results.md", "rivals.md", "scale_out.md"])
def test_the_commands_of_a_page_on_other_packages_can_be_given(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as one gets without these packages, a second process, files and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    rivals = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["rivals"]
    for line in commands_of((ROOT / "docs" / name).read_text()):
        words = shlex.split(line)
        if words[0] == "pip":
            assert {word for word in words[2:] if not word.startswith("--")} <= set(rivals)
        elif words[0] == "accelerate":
            given = launch_command_parser().parse_args(words[2:])
            assert given.module and given.training_script == "latentwire.cli.train"
            assert Path(given.config_file).is_file()
            train_main([*given.training_script_args, "--dry-run"])
        elif words[1] == "train":
            latentwire([*words[1:], "--dry-run"])
        else:
            elsewhere = [] if "--ckpt" in words else ["--ckpt", "checkpoints/default"]  # never that of this checkout
            with pytest.raises(LatentWireError, match=r"checkpoints/default|is not installed"):
                latentwire([*words[1:], *elsewhere])


def test_the_page_of_techniques_has_every_run_of_its_ablation() -> None:
    text = (ROOT / "docs" / "features.md").read_text()
    (command,) = re.findall(r"^    latentwire ablate --config (\S+)$", text, re.MULTILINE)
    names = [run.name for run in load_ablation(ROOT / command).runs]
    rows = re.findall(r"^\| `(\w+)` \| (SmolLM2|Gemma) \|", text, re.MULTILINE)
    assert sorted(rows) == sorted((name, receiver) for name in names for receiver in ("SmolLM2", "Gemma"))
    assert not {name for name in FeaturesConfig.model_fields if f"features.{name}" not in text}


def test_every_page_with_code_has_a_test_that_follows_it() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"api.md"}  # its blocks are signatures
    with_code = {n for n in pages if re.search(r"^```|^    latentwire ", (ROOT / "docs" / n).read_text(), re.MULTILINE)}
    assert len(with_code) > 8
    assert not {name for name in with_code if f'"{name}"' not in tests}


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in (ROOT / "docs").rglob("*.*"):
        made = path.relative_to(ROOT / "docs")
        page = made.with_suffix("") / "index.html" if made.stem != "index" else Path("index.html")
        assert (tmp_path / "site" / (page if made.suffix == ".md" else made)).is_file(), made
    assert "https://fonts." not in (tmp_path / "site" / "index.html").read_text()
