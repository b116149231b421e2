"""Asking questions on a file, and the page on commands, on a checkpoint of tiny models."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentwire.backbone.lm import LanguageModel
from latentwire.cli.answers import printable
from latentwire.cli.main import VERBS
from latentwire.cli.main import main as latentwire
from latentwire.model.receiver import Receiver
from tests import ROOT
from tests.commands import STORY, arguments, fails
from tests.hub import local_hub
from tests.tiny import save_tiny

QUESTIONS = ["Where does Mira live?", "What does she sell?"]


class Typed:
    """Standard input that is no terminal; what yields a line may do something before the next one is asked for."""

    def __init__(self, lines: Iterator[str]):
        self.lines = lines

    def readline(self, size: int = -1) -> str:
        line = next(self.lines, None)
        return "" if line is None else f"{line}\n"

    def isatty(self) -> bool:
        return False


def test_a_file_is_asked(
    models: Path, trained: dict[str, Any], story: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--ckpt", str(models / "run")]
    result = latentwire(["ask", str(story), *QUESTIONS, *run])
    shown = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{story}: {len(STORY)} bytes of text -> 1 message, \d+ latents, \d+ bytes, in .* s", shown[0])
    assert [line for line in shown if not line.startswith("  ")][1:] == QUESTIONS
    answers = [answer for asked in result["questions"] for answer in asked["answers"]]
    both = [(name, source) for name in ("llama", "qwen") for source in ("latents", "text")]
    assert [(a["receiver"], a["source"]) for a in answers] == both * 2
    lines = [line for line in shown if line.startswith("  ")]
    for line, answer in zip(lines, answers, strict=True):
        label = f"{answer['receiver']} {'message' if answer['source'] == 'latents' else 'text'}"
        assert line.split("  ")[1].strip() == label
        assert f"  {printable(answer['answer'])}  ({answer['positions']} positions, read in " in line
        assert answer["answer_s"] >= answer["first_token_s"] > 0 and answer["read_s"] > 0
    for latents, text in zip(answers[::2], answers[1::2], strict=True):
        assert latents["positions"] < text["positions"]
    assert answers[0]["read_s"] == answers[4]["read_s"]  # read once, for all questions

    out = story.with_suffix(".lw")
    latentwire(["encode", str(story), "-o", str(out), *run])
    assert out.stat().st_size == result["message"]["bytes"]
    for name in ("llama", "qwen"):
        asked = ["--receiver", name, "--question", QUESTIONS[0]]
        (decoded,) = latentwire(["decode", str(out), *asked, *run])
        mine = latentwire(["ask", str(story), *asked, *run, "--no-text"])["questions"][0]["answers"]
        assert [(a["receiver"], a["answer"]) for a in mine] == [(name, decoded["answers"][0]["answer"])]


def test_answers_give_a_terminal_no_orders() -> None:
    assert printable("a\x1b[2Jb\rc\u2028d\x85e") == "a\ufffd[2Jb\ufffdc\ufffdd\ufffde"
    assert printable("“na\u00efve” \u00a0 caf\u00e9") == "“na\u00efve” \u00a0 caf\u00e9"


def test_json_is_one_object(
    models: Path,
    trained: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(STORY.encode())))
    words = ["--question", QUESTIONS[0], "--receiver", "qwen", "--receiver", "llama", "--max_new_tokens", "2"]
    result = latentwire(["ask", "-", *words, "--ckpt", str(models / "run"), "--json"])
    assert json.loads(capsys.readouterr().out) == result
    assert result["text"] == {"characters": len(STORY), "bytes": len(STORY)}
    assert {a["receiver"] for a in result["questions"][0]["answers"]} == {"llama", "qwen"}


def test_a_terminal_gets_a_table(
    models: Path,
    trained: dict[str, Any],
    story: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    result = latentwire(["ask", str(story), QUESTIONS[0], "--ckpt", str(models / "run"), "--receiver", "qwen"])
    last = capsys.readouterr().out.split(QUESTIONS[0])[-1]  # the table as it is left
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", last)
    for title in ("receiver", "answer", "positions", "first s"):
        assert title in plain
    rows = [line for line in plain.splitlines() if "qwen" in line]
    for row, answer in zip(rows, result["questions"][0]["answers"], strict=True):
        assert printable(answer["answer"])[:8].strip() in row  # random models write characters of any width
        assert f" {answer['positions']} " in row and f"{answer['answer_s']:.3f}" in row


def test_a_text_longer_than_a_window_is_answered_from_its_message_alone(
    models: Path, trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "long.txt").write_text(STORY * 16)
    words = ["ask", str(tmp_path / "long.txt"), QUESTIONS[0], "--ckpt", str(models / "run"), "--receiver", "llama"]
    result = latentwire(words)
    message, text = result["questions"][0]["answers"]
    assert result["message"]["count"] > 1 and message["answer"] is not None and message["note"] is None
    assert text["answer"] is None and "longer than the model's window of 512" in text["note"]
    assert f"llama text     [{text['note']}]\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask", "gone.txt", "?"], "gone.txt: no such file"),
        (["ask", "empty.txt", "?"], "empty.txt: no text in it"),
        (["ask", "blank.txt", "?"], "blank.txt: no text in it"),
        (["ask", "story.txt"], "QUESTION: nothing is asked"),
        (["ask", "story.txt", " "], "QUESTION: nothing is asked"),
        (
            ["ask", "story.txt", "Who\udcff?"],
            "QUESTION: it is not valid Unicode: surrogates not allowed at character 3",
        ),
        (["ask", "story.txt", "?", "--documents", "2"], "--documents: only with --index"),
        (["ask", "?", "--index", "x", "--no-text"], "--no-text: does nothing with --index"),
        (["ask", "story.txt", "?", "--ckpt", "gone"], "gone: no checkpoint there"),
        (["ask", "story.txt", "?", "--receiver", "lama"], "has no receiver 'lama' (it has: llama, qwen)"),
        (["chat", "-"], "FILE: standard input is where the questions come from"),
        (["chat", "gone.txt"], "gone.txt: no such file"),
    ],
)
def test_a_mistake_ends_in_one_line(
    models: Path,
    trained: dict[str, Any],
    story: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(story.parent)
    (story.parent / "empty.txt").touch()
    (story.parent / "blank.txt").write_text(" \n")
    ckpt = [] if "--ckpt" in words else ["--ckpt", str(models / "run")]
    assert message in fails(latentwire, [*words, *ckpt], capsys)


def test_a_dialogue(
    models: Path,
    trained: dict[str, Any],
    story: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def lines() -> Iterator[str]:
        yield QUESTIONS[0]
        yield ""
        yield "/receiver lama"
        yield "/receiver q"
        yield "/text off"
        yield QUESTIONS[0]
        capsys.readouterr()
        story.write_text("Jon lives in Mosk.")
        yield QUESTIONS[0]
        told = capsys.readouterr().out
        assert f"{story} has changed; /reload reads it again" in told
        yield "/reload"
        assert f"{story}: 18 bytes of text -> 1 message" in capsys.readouterr().out
        story.unlink()
        yield "/reload"
        assert f"error: {story}: no such file" in capsys.readouterr().err
        yield QUESTIONS[0]
        yield "/help"
        shown = capsys.readouterr().out
        assert "/receiver NAME" in shown and "has changed" not in shown
        yield "/text maybe"
        assert "error: /text maybe: no such command" in capsys.readouterr().err
        yield "/quit"
        raise AssertionError("asked for a line after /quit")

    monkeypatch.setattr(sys, "stdin", Typed(lines()))
    said = latentwire(["chat", str(story), "--ckpt", str(models / "run")])
    asked = [[(a["receiver"], a["source"]) for a in turn["answers"]] for turn in said]
    everyone = [(name, source) for name in ("llama", "qwen") for source in ("latents", "text")]
    assert asked == [everyone, *[[("qwen", "latents")]] * 3]
    positions = [turn["answers"][-1]["positions"] for turn in said]
    assert positions[1] == positions[2] > positions[3]  # what was read stays until it is read again


def test_ctrl_c_ends_an_answer_and_not_the_dialogue(
    models: Path,
    trained: dict[str, Any],
    story: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    generate, calls = Receiver.generate, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return generate(*args, **kwargs)

    monkeypatch.setattr(Receiver, "generate", interrupted)
    monkeypatch.setattr(sys, "stdin", Typed(iter(QUESTIONS)))
    said = latentwire(["chat", str(story), "--ckpt", str(models / "run"), "--receiver", "llama"])
    assert [turn["question"] for turn in said] == QUESTIONS[1:]
    assert "stopped" in capsys.readouterr().out


SMALLER = {
    "demo": ["--samples", "4"],
    "eval": ["--samples", "2", "--quiet"],
    "bench": ["--steps", "1"],
    "fuzz": ["--messages", "200"],
    "rates": ["--samples", "2"],
    "add-receiver": ["--steps", "2"],
    "questions": ["--steps", "2", "--limit", "2"],
}
"""What is added to the page's commands so that they end soon; train and bench get tiny models as well."""


def test_the_page_on_commands_can_be_followed(
    models: Path,
    trained: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    commands = [shlex.split(line)[1:] for line in re.findall(r"^    (latentwire .*)$", page, re.MULTILINE)]
    assert {words[0] for words in commands} == {verb for section in VERBS.values() for verb in section}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTWIRE_CACHE", str(tmp_path / "cache"))
    hub = local_hub(tmp_path / "hub", monkeypatch)
    monkeypatch.setattr(sys, "stdin", Typed(iter(["Who wrote the notes?", "/quit"])))
    save_tiny("llama", tmp_path / "cache" / "models" / "smollm2-135m")
    (tmp_path / "notes.txt").write_text(STORY)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("runs", "checkpoints"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "default").symlink_to(models / "run")
    for name in ("squad_dev.json", "squad_train.json"):
        shutil.copy(ROOT / "examples" / "questions.json", tmp_path / name)
    (tmp_path / "paragraphs.txt").write_text("Mira of Orlin wrote it.\nIn 1871 it was lost.")
    here = {"gemma3-270m": "llama", "smollm2-135m": "qwen"}
    for words in commands:
        if words[0] == "serve":  # does not end by itself; docs/serving.md has its own test
            continue
        for at, word in enumerate(words):
            if words[at - 1] == "--receiver":
                words[at] = here[word]
        if words[0] in ("train", "bench"):
            first = words[0] == "train" and "--init_from" not in words
            words += arguments(models, **({"out_dir": models / "run"} if first else {}))
        result = latentwire([*words, *SMALLER.get(words[0], [])])
        assert result, words
    for made in (
        "notes.lw",
        "runs/squad/eval.json",
        "runs/demo/eval.json",
        "checkpoints/mine/README.md",
        "runs/three/last",
        "runs/mean/checkpoint.json",
        "runs/asked/questions.json",
    ):
        assert (tmp_path / made).exists(), made
    assert not (tmp_path / "cache" / "models" / "smollm2-135m").exists()
    assert "checkpoint.json" in hub.files("my-name/my-wire") and hub.private == {"my-name/my-wire": True}
    assert "end_to_end: done before" in capsys.readouterr().out


def test_a_corpus_is_asked(
    models: Path,
    trained: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [STORY.strip(), "Tomas sells blue boats in Kestrel.", "Edda paints the bridge of Mosk."]
    (tmp_path / "notes.txt").write_text("\n".join(lines))
    run, index = ["--ckpt", str(models / "run")], str(tmp_path / "notes.index")
    latentwire(["index", str(tmp_path / "notes.txt"), "--lines", "-o", index, *run])
    capsys.readouterr()
    result = latentwire(["ask", "--index", index, "Who sells boats?", "--question", "zzz", *run])
    shown = capsys.readouterr().out
    found, nothing = result["questions"]
    assert [(row["receiver"], row["documents"][0]["id"], row["source"]) for row in found["answers"]] == [
        (name, "2", "latents") for name in ("llama", "qwen")
    ]
    assert all(row["answer"] is None and not row["documents"] for row in nothing["answers"])
    assert "(from 2)" in shown and "no document shares a word with the question" in shown
    (tmp_path / "two.txt").write_text(lines[1])
    latentwire(["encode", "-o", str(tmp_path / "two.lw"), str(tmp_path / "two.txt"), *run])
    asked = ["--receiver", "qwen", "--question", "Who sells boats?"]
    (decoded,) = latentwire(["decode", str(tmp_path / "two.lw"), *asked, *run])
    assert decoded["answers"][0]["answer"] == found["answers"][1]["answer"]
    taken: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "take_turn", lambda lm: taken.append(lm.turns))
        in_turn = [*run, "--override", "system.sequential_models=true"]
        assert latentwire(["ask", "--index", index, "Who sells boats?", *in_turn])["questions"] == [found]
    assert taken and set(taken) == {taken[0]} != {None}  # the models of all receivers share one place
    both = latentwire(
        ["ask", "--index", index, "Who sells boats or lamps?", "--documents", "2", "--receiver", "qw,llama", *run]
    )
    (asked_both,) = both["questions"]
    assert [row["receiver"] for row in asked_both["answers"]] == ["qwen", "llama"]
    assert {hit["id"] for hit in asked_both["answers"][0]["documents"]} == {"1", "2"}
    assert "no finished index there" in fails(latentwire, ["ask", "--index", str(tmp_path), "Who?", *run], capsys)
    (tmp_path / "long.txt").write_text("\n".join([lines[1], "Pavel reads on and on. " * 400]))
    index = str(tmp_path / "long.index")
    latentwire(["index", str(tmp_path / "long.txt"), "--lines", "-o", index, *run])
    capsys.readouterr()
    asked = ["Who reads?", "--question", "Who sells boats?"]
    too_long, fine = latentwire(["ask", "--index", index, *asked, "--receiver", "qwen", *run])["questions"]
    (row,) = too_long["answers"]
    assert (row["answer"], row["source"], row["documents"][0]["id"]) == (None, None, "2")
    assert "window" in row["note"] and f"[{row['note']}]  (from 2)" in capsys.readouterr().out
    assert fine["answers"][0]["answer"] == found["answers"][1]["answer"]
    assert "neither a text nor --index" in fails(latentwire, ["ask", *run], capsys)
