"""A model that asks: candidates, learning to ask, what is kept, going on, and training on it."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire.checkpoint.tensors import load_folder, read_info, save_folder
from latentwire.config import Config
from latentwire.core.errors import ConfigError, DataError, TrainingError
from latentwire.core.names import ASKING, TEXT
from latentwire.data.candidates import likely_answers
from latentwire.data.load import load_passages
from latentwire.data.squad import parse_squad
from latentwire.training import questioner as module
from latentwire.training.questioner import MadeQuestion, Questioner, kept
from tests.commands import questions_main
from tests.losses.test_objective import shake
from tests.systems import small_config, small_passages, small_system

PLACES = ["Veyra", "Osk", "Talden", "Mirrow", "Calloway", "Brest", "Norr", "Ystad"]


def test_candidates_are_names_numbers_and_phrases() -> None:
    text = "In 1871 the tower was built by Edith Calloway, a keeper of lamps. It leans to the river."
    found = likely_answers(text, 20, random.Random(0))
    assert set(found) == {"1871", "Edith Calloway", "tower was built", "keeper of lamps", "the river"}
    assert all(answer in text for answer in found)
    few = [likely_answers(text, 3, random.Random(n)) for n in range(20)]
    assert {len(some) for some in few} == {3} and len({tuple(some) for some in few}) > 1
    assert all(len({"1871", "Edith Calloway"} & set(some)) == 2 for some in few)  # phrases take no more than a share
    assert likely_answers("It leans.", 5, random.Random(0)) == []
    names = "Ada Byron, Tom Reed, Ann Lee, Joe Hill and Edith Calloway met the keeper of lamps."
    assert all("keeper of lamps" in likely_answers(names, 4, random.Random(n)) for n in range(20))  # nor none of them


def test_what_the_reader_does_not_expect_is_not_kept() -> None:
    asked = [
        ("Ada met Tom.", [MadeQuestion("Who met Tom?", "Ada", 0.2), MadeQuestion("Who?", "Tom", 1.6)]),
        ("No.", []),
    ]
    assert [[q.text for q in p.questions] for p in kept(asked, 1.5)] == [["Who met Tom?"]]
    assert [[q.text for q in p.questions] for p in kept(asked, 1.6)] == [["Who met Tom?", "Who?"]]


def test_a_question_is_one_and_does_not_hold_its_answer() -> None:
    assert module._sound("Who met Tom?", "Ada")
    assert not module._sound("Tom met", "Ada") and not module._sound("Who met ada?", "Ada")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    def paragraph(n: int) -> dict[str, Any]:
        context = f"The lamp of number {n} is sold in {PLACES[n % len(PLACES)]} to all."
        answer = {"text": PLACES[n % len(PLACES)], "answer_start": context.index(PLACES[n % len(PLACES)])}
        return {"context": context, "qas": [{"id": str(n), "question": f"Where is {n} sold?", "answers": [answer]}]}

    data = {"data": [{"paragraphs": [paragraph(n) for n in range(40)]}]}
    (tmp_path / "squad.json").write_text(json.dumps(data))
    lines = [f"The lamp of number {n} is sold in {PLACES[n % len(PLACES)]} to all." for n in range(100, 130)]
    (tmp_path / "text.txt").write_text("\n".join([*lines, lines[0], "it has none.", "Osk " * 900]))
    return {"data_path": tmp_path / "squad.json", "text_path": tmp_path / "text.txt", "out_dir": tmp_path / "asked"}


def words(trained: dict[str, Any], files: dict[str, Path], *more: object, **flags: object) -> list[str]:
    given: dict[str, object] = {"ckpt": trained["run"], **files, "questions": 2, "steps": 3, "worst": 1000.0} | flags
    return [*(w for key, value in given.items() for w in (f"--{key}", str(value))), *map(str, more)]


@pytest.fixture
def question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models ask nothing sensible: whatever they say is a question here."""
    say = module.Questioner._questions
    monkeypatch.setattr(
        module.Questioner,
        "_questions",
        lambda self, batch: [[f"{q}{n}?" for n, q in enumerate(o)] for o in say(self, batch)],
    )


@pytest.mark.usefixtures("question_marks")
def test_questions_are_asked_kept_and_trained_on(
    trained: dict[str, Any], files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    result = questions_main(words(trained, files))
    assert result["asked"] == result["kept"] > 30 and Path(result["file"]) == files["out_dir"] / "questions.json"
    passages = parse_squad(json.loads((files["out_dir"] / "questions.json").read_text()))
    assert len(passages) == 30  # each paragraph once; none without a candidate or too long
    assert all(1 <= len(p.questions) <= 2 and q.answers[0] in p.context for p in passages for q in p.questions)
    config = Config.model_validate({"data": {"dataset": "squad", "data_path": result["file"]}})
    assert len(load_passages(config.data, "train")) == 30
    assert [path.name for path in (files["out_dir"] / "asker").iterdir()] == ["done"]
    # Chosen anew from what was asked, without a step or a question more.
    capsys.readouterr()
    fewer = questions_main(words(trained, files, worst=0.001))
    assert fewer["asked"] == result["asked"] and fewer["kept"] == 0
    assert "step" not in capsys.readouterr().out
    with open(files["text_path"], "a") as file:
        file.write("\nThe lamp of number 7 is sold in Ystad to nobody.")
    more = questions_main(words(trained, files))
    assert 1 <= more["asked"] - result["asked"] <= 2
    with pytest.raises(ConfigError, match=r"--out_dir: .*asked with other settings"):
        questions_main(words(trained, files, questions=3))


@pytest.mark.usefixtures("question_marks")
def test_asking_goes_on_where_it_was_cut_off(
    trained: dict[str, Any], files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = questions_main(words(trained, files))
    expected = (files["out_dir"] / "questions.json").read_text()
    other = files | {"out_dir": files["out_dir"].with_name("other")}
    monkeypatch.setattr(module, "BATCH", 10)
    say, calls = module.Questioner._questions, []

    def cut_off(self: Any, batch: Any) -> Any:
        calls.append(len(batch))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return say(self, batch)

    monkeypatch.setattr(module.Questioner, "_questions", cut_off)
    with pytest.raises(KeyboardInterrupt):
        questions_main(words(trained, other))
    assert not (other["out_dir"] / "questions.json").exists()
    assert questions_main(words(trained, other))["asked"] == whole["asked"]
    assert calls == [10, 10, 10, 10]
    assert (other["out_dir"] / "questions.json").read_text() == expected


def test_it_learns_to_ask(trained: dict[str, Any], files: dict[str, Path]) -> None:
    """The loss of questions falls, and what is asked then is a question, and is asked of the passage."""
    from latentwire.checkpoint.index import find_checkpoint, load_config_of
    from latentwire.model.pretrained import load_receiver

    folder = find_checkpoint(Path(trained["run"]))
    changes = {"data.dataset": "squad", "data.data_path": str(files["data_path"]), "optimizer.lr_tuning": 1e-2}
    config = load_config_of(folder, changes)
    asker = module.Questioner(load_receiver(folder, "llama", changes), config, files["out_dir"])
    asker.tune(load_passages(config.data, "train"), 120)
    text = files["text_path"].read_text().splitlines()[3]
    (own,) = [asked for _, asked in asker.ask([text], 4)]
    assert own and all(one.question.startswith("Where is ") for one in own)
    read = asker._read(text)
    assert module.SlotTuning(asker.receiver, [read], config, ASKING).row(read) == read.ids  # all of it


@pytest.mark.usefixtures("question_marks")
def test_an_asker_goes_on_for_its_own_checkpoint_alone(
    trained: dict[str, Any], files: dict[str, Path], tmp_path: Path
) -> None:
    long = tmp_path / "long.txt"
    long.write_text("Osk " * 900)
    with pytest.raises(DataError, match=r"--text_path: .*long\.txt: no paragraph is short enough"):
        questions_main(words(trained, files | {"text_path": long}))
    questions_main(words(trained, files))
    other = tmp_path / "other"
    shutil.copytree(Path(trained["checkpoint"]), other)
    group = load_folder(other, ["sender"])["sender"]
    info = read_info(other)
    copied = {name: Path(trained["checkpoint"]) / name for name in info["files"] if name != "sender.safetensors"}
    save_folder(other, {"sender": {key: tensor + 1 for key, tensor in group.items()}}, info, copied=copied)
    with pytest.raises(ConfigError, match="asked with other settings"):
        questions_main(words(trained, files, ckpt=other))


def test_what_cannot_be_asked_is_said(trained: dict[str, Any], files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.text_path: .*gone: no such file$"):
        questions_main(words(trained, files | {"text_path": tmp_path / "gone"}))
    with pytest.raises(ConfigError, match=r"^--out_dir: .* is a file; questions go into a folder$"):
        questions_main(words(trained, files | {"out_dir": files["text_path"]}))
    with pytest.raises(ConfigError, match=r"^--receiver: .* has no receiver 'x' \(it has: llama, "):
        questions_main(words(trained, files, "--receiver", "x"))
    short = ("--override", "data.max_context_tokens=2")
    with pytest.raises(TrainingError, match=r"no training passage is short enough"):
        questions_main(words(trained, files, *short))
    with pytest.raises(TrainingError, match=r"receiver 'llama': it has no LoRA tuned on text"):
        questions_main(words(trained, files, "--override", "features.use_lora=false"))
    assert not (files["out_dir"] / "questions.json").exists()


@torch.no_grad()
def test_an_answer_is_expected_by_the_reader_of_the_text_token_by_token(tmp_path: Path) -> None:
    system = small_system(small_config(features={"use_lora": True}), ("llama",))
    receiver, passage = system.receivers["a"], small_passages(1)[0]
    for name in (TEXT, ASKING):
        shake(receiver, name)
    pairs = [(question.text, question.answers[0]) for question in passage.questions]
    (found,) = Questioner(receiver, system.config, tmp_path)._expected([passage.context], [pairs])
    text = system.prepare(passage)[1]["a"]
    with receiver.using(TEXT):
        for nll, (tail, answer) in zip(found, text.questions, strict=True):
            logits = receiver.lm.model(torch.tensor([text.ids + tail + answer])).logits[0, -len(answer) - 1 : -1]
            assert nll == pytest.approx(
                float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer))), rel=1e-4
            )
    assert len(found) == 2 and all(len(answer) > 1 for _, answer in text.questions)


def test_asking_and_expecting_is_without_dropout(tmp_path: Path) -> None:
    config = small_config(features={"use_lora": True}, lora={"r": 4, "alpha": 8, "dropout": 0.5})
    receiver, passage = small_system(config, ("llama",)).receivers["a"], small_passages(1)[0]
    for name in (TEXT, ASKING):
        shake(receiver, name)
    questioner = Questioner(receiver, config, tmp_path)
    pairs = [(question.text, question.answers[0]) for question in passage.questions]
    with torch.no_grad():
        asked = questioner._questions([(passage.context, ["red lamps", "river"])])
        expected = questioner._expected([passage.context], [pairs])
    assert questioner._questions([(passage.context, ["red lamps", "river"])]) == asked
    assert questioner._expected([passage.context], [pairs]) == expected
