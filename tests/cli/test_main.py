"""The verbs of the console command, on a checkpoint of tiny models."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentwire.cli.answers import printable
from latentwire.cli.extras import EXTRAS, extras
from latentwire.cli.main import VERBS, run
from latentwire.cli.main import main as latentwire
from latentwire.cli.run import run_and_exit
from latentwire.config import some_receivers
from latentwire.core.errors import ConfigError, WireError
from latentwire.model.receiver import Receiver, Reply
from latentwire.train import main as train_main
from latentwire.wire.codecs import CODECS
from latentwire.wire.message import Wire, read_texts
from tests import ROOT
from tests.artifacts import measured, results
from tests.commands import STORY, fails
from tests.tiny import save_tiny

NAMES = [verb for section in VERBS.values() for verb in section]
ASK = ["--question", "Where does Mira live?", "--question", "What does she sell?"]


class Pipe(io.BytesIO):
    """Standard input or output that is not a terminal."""

    def __init__(self, data: bytes = b""):
        super().__init__(data)
        self.buffer = self

    def isatty(self) -> bool:
        return False


def test_a_text_goes_through_files(
    models: Path, trained: dict[str, Any], story: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = story.with_suffix(".lw")
    counts = latentwire(["encode", str(story), "--ckpt", str(models / "run"), "--codec", "int8", "-o", str(out)])
    assert counts == {"messages": 1, "bytes": out.stat().st_size}
    assert f"{out}: 1 message, {counts['bytes']} bytes" in capsys.readouterr().out
    words = ["encode", str(story), "--ckpt", str(models / "run"), "--codec", "int8", "--json"]
    assert latentwire([*words, "-o", str(out)]) == counts == json.loads(capsys.readouterr().out)
    assert "--json: standard output is where the message goes" in fails(latentwire, words, capsys)

    rows = latentwire(["inspect", str(out), "--json"])
    assert json.loads(capsys.readouterr().out) == rows
    assert rows[0]["latents"]["codec"].startswith("int8") and rows[0]["latents"]["d_z"] == 16
    assert rows[0]["bytes"] == counts["bytes"] and rows[0]["text"] is None and len(rows[0]["sender"]) == 16
    latentwire(["inspect", str(out)])
    assert "latents of 16 in int8" in capsys.readouterr().out
    (beside := story.with_suffix(".beside.lw")).write_bytes(
        Wire.of(np.ones((4, 16)), "fp16", text="Mira lives in Orlin.").to_bytes()
    )
    (damaged := story.with_suffix(".damaged.lw")).write_bytes(2 * beside.read_bytes() + b"no message")
    with pytest.raises(WireError):
        latentwire(["inspect", str(damaged)])
    assert capsys.readouterr().out.count("4 latents of 16") == 2  # what comes before the damage is shown
    with pytest.raises(WireError):
        latentwire(["inspect", str(damaged), "--json"])
    assert [row["latents"]["count"] for row in json.loads(capsys.readouterr().out)] == [4, 4]
    (row,) = latentwire(["inspect", str(beside), "--json"])  # what the text takes is no part of it
    assert row["latents"]["bits_per_dimension"] == 8 * (row["bytes"] - row["text"]["bytes"]) / 64
    (part := story.with_suffix(".part.lw")).write_bytes(Wire.of(np.ones((4, 16)), "fp16", more=True).to_bytes())
    with pytest.raises(WireError, match=r"story\.part\.lw: the stream ends inside a text"):
        latentwire(["inspect", str(part)])
    assert "goes on in the next message" in capsys.readouterr().out

    ends = [
        latentwire(["decode", str(out), "--ckpt", str(models / "run"), "--receiver", name, *ASK])
        for name in ("llama", "qwen")
    ]
    shown = capsys.readouterr()
    assert shown.out.split("\n")[:-1] == [printable(a["answer"]) for end in ends for a in end[0]["answers"]]
    assert not shown.err
    assert {a["source"] for end in ends for a in end[0]["answers"]} == {"latents"}
    words = ["decode", str(out), "--ckpt", str(models / "run"), "--receiver", "qw", *ASK, "--candidates", "4"]
    several = Receiver.from_pretrained(models / "run", "qwen").answer_batch(
        [Wire.from_bytes(out.read_bytes())], [ASK[1::2]], candidates=4
    )
    assert [a["answer"] for a in latentwire(words)[0]["answers"]] == [reply.text for reply in several[0]]


def test_a_text_goes_through_pipes_in_parts(
    models: Path, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Pipe()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", Pipe((STORY * 3).encode()))
        patch.setattr(sys, "stdout", out)
        counts = latentwire(["encode", "--ckpt", str(models / "run"), "--chunk", "60", "--text", "beside"])
    (parts,) = read_texts(io.BytesIO(out.getvalue()))
    assert counts["messages"] == len(parts) > 2
    assert "".join(wire.text or "" for wire in parts) == STORY * 3
    monkeypatch.setattr(sys, "stdin", Pipe(out.getvalue()))
    rows = latentwire(["decode", "-", "--ckpt", str(models / "run"), "--receiver", "qwen", *ASK, "--json"])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    assert len(rows) == 1 and len(rows[0]["answers"]) == 2


def test_every_line_may_be_a_text(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lines.txt").write_text("Mira lives in Orlin.\n\nJon lives in Mosk.\nEdda sells boats.")
    out = str(tmp_path / "lines.lw")
    words = ["--ckpt", str(models / "run"), "-o", out]
    assert latentwire(["encode", str(tmp_path / "lines.txt"), "--lines", *words])["messages"] == 3
    rows = latentwire(["decode", out, "--ckpt", str(models / "run"), "--receiver", "llama", "--question", "Who?"])
    assert [row["text"] for row in rows] == [1, 2, 3]
    assert latentwire(["encode", *[str(tmp_path / "lines.txt")] * 2, *words])["messages"] == 2


def test_a_pipe_is_a_text_like_any_other(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(b"\xef\xbb\xbf Mira sings. \r\n\n Jon\n"))
    writer.start()
    latentwire(["encode", str(tmp_path / "pipe"), "--lines", "--text", "only", "-o", str(tmp_path / "out.lw")])
    writer.join(10)
    with open(tmp_path / "out.lw", "rb") as stream:
        assert [[wire.text for wire in wires] for wires in read_texts(stream)] == [["Mira sings."], ["Jon"]]


def test_an_answer_gives_a_terminal_no_orders(
    models: Path,
    trained: dict[str, Any],
    story: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(story.with_suffix(".lw"))
    latentwire(["encode", str(story), "--text", "only", "-o", out])
    monkeypatch.setattr(Receiver, "answer_batch", lambda *asked, **more: [[Reply("a\x1b[2J", "text")]])
    capsys.readouterr()
    latentwire(["decode", out, "--ckpt", str(models / "run"), "--receiver", "llama", "--question", "Who?"])
    assert capsys.readouterr().out == "a\ufffd[2J\n"


def test_text_alone_needs_no_checkpoint_and_answers_say_what_was_read(
    models: Path, trained: dict[str, Any], story: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "text.lw")
    latentwire(["encode", str(story), "--text", "only", "-o", out, "--ckpt", "/no/such/folder"])
    assert Wire.from_bytes(Path(out).read_bytes()).text == STORY
    capsys.readouterr()
    rows = latentwire(["decode", out, "--ckpt", str(models / "run"), "--receiver", "llama", *ASK])
    assert "text 1: answered from the text in the message: the message holds no latents" in capsys.readouterr().err
    assert {a["source"] for a in rows[0]["answers"]} == {"text"}


def test_a_receiver_needs_neither_the_sender_s_weights_nor_its_model(
    models: Path, trained: dict[str, Any], story: Path, tmp_path: Path
) -> None:
    """In a process of its own, with the sender's files out of reach."""
    shutil.copytree(models / "run" / "last", tmp_path / "run")
    out = tmp_path / "story.lw"
    latentwire(["encode", str(story), "--ckpt", str(tmp_path / "run"), "-o", str(out)])
    (tmp_path / "run" / "sender.safetensors").unlink()
    words = ["decode", "--ckpt", str(tmp_path / "run"), "--receiver", "qwen", "--question", "Where?", "--json"]
    words += ["--override", "encoder.model=/no/such/model"]
    done = subprocess.run(
        [sys.executable, "-m", "latentwire", *words], cwd=ROOT, input=out.read_bytes(), capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["answers"][0]["source"] == "latents"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["encode", "gone.txt"], "gone.txt: no such file"),
        (["encode", __file__, "--codec", "int5", "-o", "x.lw"], "codec 'int5' is unknown"),
        (["encode", __file__, "--ckpt", "gone", "-o", "x.lw"], "gone: no checkpoint there"),
        (["encode", "{empty}", "--text", "only", "-o", "x.lw"], "empty: no text in it"),
        (["encode", "{blank}", "--text", "only", "-o", "x.lw"], "blank: no text in it"),
        (["encode", ".", "-o", "x.lw"], ".: a folder (latentwire index compresses"),
        (["encode", __file__, "--codec", "rvq", "-o", "x.lw"], "has no codebook for it"),
        (["rates", "--codec", "rvq"], "has no codebook for it"),
        (["rates", "-o", "rows.png"], "--out: rows.png: a file for the rows"),
        (["index", "gone.txt", "-o", "x"], "gone.txt: no such file or folder"),
        (
            ["ask", __file__, "?", "--index", "x"],
            "test_main.py: with --index the text is found in the index; name a question",
        ),
        (["ask", "Why? " * 60, "--index", "x"], "x: no finished index there"),
        (["index", "{text}", "-o", "{text}"], "--out: text is a file"),
        (["index", "{text}", "-o", "x", "--id_key", "n"], "--id_key: text is a text, which has no keys"),
        (["index", "{rows}", "-o", "x", "--lines"], "--lines: every row of rows.jsonl is a document already"),
        (["index", "{text}", "-o", "x", "--codec", "rvq"], "has no codebook for it"),
        (["serve", "--role", "sender", "--receiver", "a"], "--receiver: does nothing with --role sender"),
        (["export", "--ckpt", str(ROOT / "checkpoints" / "default"), "--out", "{text}"], "--out: text is a file"),
        (["decode", "{text}", "--receiver", "a", "--question", " "], "QUESTION: nothing is asked"),
        (["encode", "{binary}", "--text", "only", "-o", "x.lw"], "not a UTF-8 text"),
        (["encode", "--text", "both"], "'both' is not one of"),
        (["encode", __file__, "--text", "only", "--codec", "int8", "-o", "x.lw"], "--codec: does nothing with"),
        (["inspect", "gone.lw"], "gone.lw: no such file"),
        (["inspect", "{empty}"], "empty: no message in it"),
        (["decode", "{empty}", "--receiver", "a", "--question", "?"], "empty: no message in it"),
        (["inspect", __file__], "test_main.py: not a LatentWire message"),
        (["decode", __file__, "--receiver", "a", "--question", "?"], "test_main.py: not a LatentWire message"),
        (["decode", "{text}", "--receiver", "a", "--question", "?", "--ckpt", "gone"], "gone: no checkpoint there"),
        (["decode", "{text}"], "receiver"),
        (
            ["decode", "{text}", "--receiver", "a", "--question", "?", "--override", "evaluation.candidates=4"],
            "--override evaluation.candidates: --candidates says that here",
        ),
        (["ask", __file__, "?", "--override", "evaluation.max_new_tokens=4"], "--max_new_tokens says that here"),
        (["chat", __file__, "--override", "evaluation.max_new_tokens=4"], "--max_new_tokens says that here"),
        (["serve", "--override", "evaluation.max_new_tokens=4"], "--max_new_tokens says that here"),
        (
            ["questions", "--text_path", "a", "--data_path", "b", "--out", "c", "--override", "data.data_path=d"],
            "--override data.data_path: --data_path says that here",
        ),
        (["codecs", "--codec", "int9"], "codec 'int9' is unknown"),
        (["codecs", "--latents", "65535", "--d_z", "65535"], "--latents, --d_z: 4,294,836,225 numbers are more than"),
        (["bench", "--init_from", "gone"], "checkpoint.init_from: leave it out; what is timed are untrained weights"),
        (["no_such_verb"], "no_such_verb"),
        (["encode", "{text}", "--text", "only", "-o", "./text"], "--out: ./text is a text that is read"),
        (["encode", "{text}", "--ckpt", "gone", "-o", "."], "--out: . is a folder; the messages go into a file"),
    ],
)
def test_a_mistake_ends_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "empty": b"",
        "blank": b"\xef\xbb\xbf \n",
        "binary": b"a\xff",
        "text": Wire.of(text="a").to_bytes(),
        "rows.jsonl": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    before = sorted(tmp_path.iterdir())
    line = fails(latentwire, [word.format(**{Path(name).stem: name for name in files}) for word in words], capsys)
    assert message in line
    assert sorted(tmp_path.iterdir()) == before


def test_standard_input_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f").write_text("Mira sells lamps.")
    for words in (["-"], []):
        with (tmp_path / "f").open() as file:
            monkeypatch.setattr(sys, "stdin", file)
            words = ["encode", *words, "--ckpt", "gone", "-o", str(tmp_path / "f")]
            assert "is a text that is read" in fails(latentwire, words, capsys)
    with (tmp_path / "f").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        latentwire(["encode", "--text", "only", "-o", str(tmp_path / "g")])
    assert (tmp_path / "f").read_text() == "Mira sells lamps."


def test_a_message_for_another_reader_is_refused_before_models_are_loaded(
    models: Path,
    trained: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from latentwire.model import pretrained

    monkeypatch.setattr(pretrained, "load_lm", None)
    ask = ["--ckpt", str(models / "run"), "--question", "?", "--receiver"]
    for wire, reason in (
        (Wire.of([[1.0] * 16], sender=b"stranger"), "comes from sender"),
        (Wire.of([[1.0] * 8]), "width 8; the reader expects 16"),
    ):
        (tmp_path / "x.lw").write_bytes(wire.to_bytes())
        line = fails(latentwire, ["decode", str(tmp_path / "x.lw"), *ask, "llama"], capsys)
        assert f"{tmp_path / 'x.lw'}: the message " in line and reason in line and "carries no text" in line
    (tmp_path / "x.lw").write_bytes(Wire.of([[1.0] * 16]).to_bytes())
    assert "has no receiver 'lama'" in fails(latentwire, ["decode", str(tmp_path / "x.lw"), *ask, "lama"], capsys)


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert set(EXTRAS.values()) <= tomllib.load(file)["project"]["optional-dependencies"].keys()
    for module, extra in EXTRAS.items():
        monkeypatch.setitem(sys.modules, module, None)
        with (
            pytest.raises(ConfigError, match=rf"^{module} is not installed; .* pip install -e '\.\[{extra}\]'$"),
            extras(),
        ):
            importlib.import_module(module)
    with pytest.raises(ModuleNotFoundError), extras():  # not one of them: a mistake of ours
        importlib.import_module("latentwire.none")
    assert "uvicorn is not installed" in fails(latentwire, ["serve"], capsys)


def test_the_name_of_a_receiver_may_be_cut_short() -> None:
    model = {"gemma3-270m": "g", "gemma3-1b": "h", "smollm2": "s", "smol": "t"}
    assert some_receivers(model, ["smoll", "gemma3-2"], "x") == {"smollm2": "s", "gemma3-270m": "g"}
    assert some_receivers(model, ["smol"], "x") == {"smol": "t"}  # a whole name is no beginning of another
    with pytest.raises(ConfigError, match=r"^x has several receivers that begin with 'gemma' \(it has: gemma3-270m, g"):
        some_receivers(model, ["gemma"], "x")


def test_a_message_is_not_written_to_a_terminal(
    story: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "--out: a message is binary" in fails(latentwire, ["encode", str(story), "--text", "only"], capsys)


LIGHT = """
import os, sys
from latentwire.cli.main import main
loaded = lambda *names: sorted(name for name in sys.modules if name in names)
main(["--help"])
own = {name.removeprefix("latentwire.") for name in sys.modules if name.startswith("latentwire.")}
assert own == {"cli", "cli.main", "cli.run", "core", "core.errors"}, own
others = loaded("rich", "pydantic", "numpy", "huggingface_hub")
assert not others, others
for words in (
    ["validate", "configs/default.json", "configs/ablation/sample_ablation.json"],
    ["train", "--config", "configs/default.json", "--dry-run"],
    ["ablate", "--config", "configs/ablation/sample_ablation.json", "--dry-run"],
    ["compare", "--latent", "eval.json", "--text", "eval.json"],
):
    main(words)
assert not loaded("numpy"), words
for words in (["models", "ls"], ["inspect", "x.lw"], *([verb, "--help"] for verb in sys.argv[1:])):
    main(words)
    assert not loaded("torch", "transformers", "peft", "datasets"), words
"""


def test_what_needs_no_torch_loads_none(tmp_path: Path) -> None:
    (tmp_path / "x.lw").write_bytes(Wire.of([[1.0] * 4], "int4", text="a").to_bytes())
    (tmp_path / "eval.json").write_text(json.dumps(results(a={"text": measured(0.5), "latent": measured(0.4)})))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT), "LATENTWIRE_CACHE": str(tmp_path / "cache")}
    environment["HF_HUB_CACHE"] = str(tmp_path / "hub")
    command = [sys.executable, "-c", LIGHT, *NAMES]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    start = done.stdout.split("configs/default.json: valid")[0]
    for name in NAMES:
        assert re.search(rf"^  {name} ", start, re.MULTILINE), name
    assert "1 latents of 4 in int4" in done.stdout and "smollm2-135m" in done.stdout
    helps = re.split(r"^Usage: latentwire ", done.stdout, flags=re.MULTILINE)[2:]
    assert [text.split()[0] for text in helps] == NAMES
    for text in helps:
        assert re.search(r"Example: latentwire \w+|Example:\n", text) or "so export twice. Example:" in text, text
        assert re.search(r"^  --debug  +Show tracebacks", text, re.MULTILINE) or text.startswith("models "), text


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("latentwire mo", ["models"]),
        ("latentwire models ", ["ls", "pull", "rm"]),
        ("latentwire models ls --de", ["--debug"]),
        ("latentwire train --sampl", ["--samples"]),
        ("latentwire eval --dataset sq", ["squad", "squad_v2"]),
        ("latentwire ask --rec", ["--receivers", "--receiver"]),
        ("latentwire encode --text b", ["beside"]),
    ],
)
def test_a_shell_completes_verbs_options_and_values(
    line: str, candidates: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_LATENTWIRE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    with pytest.raises(SystemExit) as stop:
        latentwire([])
    assert stop.value.code == 0 and capsys.readouterr().out.split() == candidates


def test_completion_can_be_installed(capsys: pytest.CaptureFixture[str]) -> None:
    latentwire(["--help"])
    shown = capsys.readouterr().out
    assert "--install-completion" in shown and "--show-completion" in shown


def test_a_verb_is_the_very_command_of_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--override", "data.samples=64", "--window", "8", "--dry-run", "--out", "here"]
    assert latentwire(["train", *words]) == train_main(words) and train_main(words)["run"] == "here"
    assert "Usage: latentwire train [OPTIONS]" in fails_at_usage(["train", "--no_such_flag"], capsys)
    assert "gone.json: no such file" in fails(latentwire, ["train", "--config", "gone.json"], capsys)


def fails_at_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        run_and_exit(lambda: latentwire(words))
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_ctrl_c_is_no_success(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def pressed(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("latentwire.cli.validate.check", pressed)
    with pytest.raises(SystemExit) as stop:
        run_and_exit(lambda: latentwire(["validate", "x.json"]))
    assert stop.value.code == 130 and capsys.readouterr().err == "stopped\n"


def test_a_full_device_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee documentation")

    monkeypatch.setattr("latentwire.cli.validate.check", full)
    assert fails_at_usage(["validate", "x.json"], capsys) == (
        "error: CUDA out of memory. Tried to allocate 2 GiB. (a smaller optimizer.batch_size or system.grad_ckpt may "
        "help)\n"
    )


@pytest.mark.parametrize("words", [["--version"], ["validate", "configs/default.json"], ["compare", "--help"]])
def test_output_that_nobody_takes(words: list[str]) -> None:
    program = [sys.executable, "-m", "latentwire", *words]
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as pipe:
        done = subprocess.run(program, cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")  # whoever read it has enough
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as disk:
            done = subprocess.run(program, cwd=ROOT, stdout=disk, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (2, b"error: [Errno 28] No space left on device\n")
    done = subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *program], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_terminal_of_another_encoding_shows_escapes_and_its_input_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "ö.json").write_text("{}")
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii:strict"}
    words = [sys.executable, "-m", "latentwire"]
    for more in (["validate", "ö.json"], ["validate", "ü.json"]):
        done = subprocess.run([*words, *more], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert r"\x" in done.stdout + done.stderr and "Traceback" not in done.stderr
    ask = [*words, "decode", "-", "--receiver", "a", "--question", "Who?", "--ckpt", "gone"]
    done = subprocess.run(ask, cwd=tmp_path, env=environment, input=b"\xff", capture_output=True)
    assert done.returncode == 2 and b"Traceback" not in done.stderr


def test_a_closed_input_is_an_empty_one(tmp_path: Path) -> None:
    words = ["-m", "latentwire", "encode", "--text", "only", "-o", "x.lw"]
    environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
    command = ["sh", "-c", '"$@" <&-', "sh", sys.executable, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: standard input: no text in it\n")
    assert not any(tmp_path.iterdir())


def test_configurations_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, ablation = str(ROOT / "configs" / "smoke" / "lora.json"), str(ROOT / "configs/ablation/sample_ablation.json")
    rows = latentwire(["validate", good, ablation, "--json"])
    assert json.loads(capsys.readouterr().out) == rows
    assert [(row["kind"], row["error"]) for row in rows] == [("run", None), ("ablation", None)]
    assert len(rows[1]["runs"]) > 1 and "smollm2-135m" in rows[0]["receivers"].values()
    latentwire(["validate", good])
    assert capsys.readouterr().out.startswith(f"{good}: valid, receivers: ")
    for name, text, message in (
        ("a", '{"encoder": {"windw": 4}}', "encoder.windw: unknown key (did you mean encoder.window?)"),
        ("b", '{"evaluation": {"codec": "int5"}}', "evaluation.codec: codec 'int5' is unknown"),
        ("c", '{"sweep": {"encoder.window": [4, "x"]}}', "encoder.window"),
        ("d", "{", "not valid JSON"),
        ("f", '{"curriculum": {"train_only": ["gemma3-270m"]}}', "train_only: needs checkpoint.init_from"),
        ("g", '{"evaluation": {"codec": "fsq"}}', "evaluation.codec: 'fsq' needs a codebook"),
        ("h", '{"data": {"data_path": "squad.json"}}', "data.data_path: squad.json: the dataset is facts"),
    ):
        (tmp_path / f"{name}.json").write_text(text)
        line = fails(latentwire, ["validate", str(tmp_path / f"{name}.json")], capsys)
        assert line.startswith(f"error: {tmp_path / name}.json: ") and message in line
    assert "encoder.window" in fails(latentwire, ["validate", good, "--override", "encoder.window=x"], capsys)
    (tmp_path / "e.json").write_text('{"model": {"receivers": {}}}')
    line = fails(latentwire, ["validate", str(tmp_path / "e.json")], capsys)
    assert line == f"error: {tmp_path / 'e.json'}: model.receivers: at least one receiver is needed"
    with pytest.raises(ConfigError, match="2 of 3 files are wrong"):
        latentwire(["validate", str(tmp_path / "a.json"), good, str(tmp_path / "d.json")])
    shown = capsys.readouterr()
    assert f"{good}: valid" in shown.out and len(shown.err.splitlines()) == 2


def test_models_are_listed_fetched_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LATENTWIRE_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    kept = save_tiny("llama", tmp_path / "models" / "smollm2-135m")
    rows = latentwire(["models", "ls", "--json"])
    assert json.loads(capsys.readouterr().out) == rows
    row = {row["name"]: row for row in rows}["smollm2-135m"]
    assert (row["place"], row["path"], row["licence"]) == ("cache", str(kept), "Apache-2.0")
    assert row["bytes"] == sum(file.stat().st_size for file in kept.iterdir())
    latentwire(["models", "ls"])
    assert re.search(rf"^smollm2-135m +unpacked +{row['bytes'] / 1e6:.1f} MB +{kept}$", capsys.readouterr().out, re.M)
    (pulled,) = latentwire(["models", "pull", "smollm2-135m", "--json"])
    assert json.loads(capsys.readouterr().out) == [pulled] and pulled["path"] == str(kept)
    (removed,) = latentwire(["models", "rm", "smollm2-135m"])
    assert removed == row and not kept.exists() and "smollm2-135m: removed" in capsys.readouterr().out
    assert "no such model" in fails(latentwire, ["models", "rm", "no such model"], capsys)


def test_the_package_installs_the_command() -> None:
    target = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["latentwire"]
    module, name = target.split(":")
    assert getattr(importlib.import_module(module), name) is run


def test_without_a_verb_there_is_help_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_and_exit(lambda: latentwire([]))
    shown = capsys.readouterr()
    assert stop.value.code == 2 and "inspect" in shown.out + shown.err and "Error" not in shown.err


def test_codecs_are_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    result = latentwire(["codecs", "--seconds", "0", "--latents", "4", "--d_z", "64", "--json"])
    assert json.loads(capsys.readouterr().out) == result
    assert [row["codec"].split(":")[0] for row in result["codecs"]] == list(CODECS)
    errors = {row["codec"].split(":")[0]: row["rms_error"] for row in result["codecs"]}
    assert errors["fp32"] == 0 < errors["fp16"] < errors["bf16"] < errors["int8"] < errors["int6"] < errors["int4"]
    for row in result["codecs"]:
        assert row["encode_mb_per_s"] == pytest.approx(row["encode_messages_per_s"] * 4 * 4 * 64 / 1e6)
        assert row["bits_per_dimension"] == 8 * row["bytes"] / 256
    latentwire(["codecs", "--seconds", "0", "--codec", "int4:group=128"])
    assert "int4:group=128,scale_bits=8" in capsys.readouterr().out
    monkeypatch.setattr("latentwire.cli.codecs._per_second", lambda *_: pytest.fail("measured"))
    assert "codec 'int9' is unknown" in fails(latentwire, ["codecs", "--codec", "int8", "--codec", "int9"], capsys)
    assert "should be less than or equal to 3600" in fails(latentwire, ["codecs", "--seconds", "inf"], capsys)


def test_fuzz_reports_what_it_tried(capsys: pytest.CaptureFixture[str]) -> None:
    result = latentwire(["fuzz", "--messages", "600", "--seed", "3", "--json"])
    assert json.loads(capsys.readouterr().out) == result and result["messages"] == 600
    assert result["largest_parse_bytes"] > 0
    assert "message of # bytes, not the # that it announces" in result["refused"]
    again = latentwire(["fuzz", "--messages", "600", "--seed", "3"])
    assert again["refused"] == result["refused"] and "600 messages in" in capsys.readouterr().out


def test_fuzz_ends_at_the_first_other_exception(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from latentwire.cli import fuzz

    originals, from_bytes = fuzz.originals, Wire.from_bytes

    def then_broken(rng: Any) -> list[bytes]:
        out = originals(rng)
        monkeypatch.setattr(Wire, "from_bytes", lambda data: from_bytes(data) if len(data) % 7 else 1 // 0)
        return [data for data in out if len(data) % 7]

    monkeypatch.setattr(fuzz, "originals", then_broken)
    assert "gave ZeroDivisionError" in fails(latentwire, ["fuzz", "--messages", "500"], capsys)
