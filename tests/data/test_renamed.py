"""Passages under other names."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from latentwire.config import Config, config_from_dict
from latentwire.core.errors import ConfigError
from latentwire.data import renamed as module
from latentwire.data.example import Passage, Question
from latentwire.data.load import load_passages
from latentwire.data.renamed import names_in, renamed, renamed_passages

TEXT = (
    "In 1871 the tower was built by Edith Calloway for the town of Talden. Calloway left it on 3 May 1902, with 12,400 "
    "lamps. The tower leans."
)
OTHERS = ["The mayor saw Ada Byron and Tom Reed.", "He came to Veyra, and went to Osk."]


def passage(*asked: tuple[str, str], text: str = TEXT) -> Passage:
    return Passage(
        "p", text, tuple(Question(str(n), question, (answer,)) for n, (question, answer) in enumerate(asked))
    )


@pytest.fixture
def all_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHANGED", 1.0)


@pytest.mark.usefixtures("all_change")
def test_names_and_numbers_change_alike_in_passage_and_questions() -> None:
    asked = passage(("Who built the tower of Talden?", "Edith Calloway"), ("When did Calloway leave it?", "3 May 1902"))
    for seed in range(20):
        made = renamed(asked, names_in(OTHERS), random.Random(seed))
        assert made is not None and made.id == "renamed-p"
        found = re.fullmatch(
            r"In (\d{4}) the tower was built by (Ada Byron|Tom Reed) for the town of (Veyra|Osk)\. (Byron|Reed) left "
            r"it on (\d \w+ \d{4}), with (\d\d,\d{3}) lamps\. The tower leans\.",
            made.context,
        )
        assert found, made.context
        year, name, town, surname, date, lamps = found.groups()
        assert name.endswith(surname) and 1791 <= int(year) <= 1951 and year != "1871" and lamps != "12,400"
        first, second = made.questions
        assert (first.text, first.answers) == (f"Who built the tower of {town}?", (name,))
        assert (second.text, second.answers) == (f"When did {surname} leave it?", (date,))
        assert date != "3 May 1902" and date.split()[1] in module.MONTHS


@pytest.mark.usefixtures("all_change")
def test_a_question_whose_answer_is_lost_goes() -> None:
    kept = ("Who built the tower?", "Edith Calloway")
    made = renamed(passage(kept, ("What is it?", "a lighthouse")), names_in(OTHERS), random.Random(0))
    assert made is not None and [q.text for q in made.questions] == [kept[0]]
    assert renamed(passage(("What is it?", "a lighthouse")), names_in(OTHERS), random.Random(0)) is None
    assert renamed(passage(("What leans?", "it"), text="it leans"), names_in(OTHERS), random.Random(0)) is None


@pytest.mark.usefixtures("all_change")
def test_a_question_that_is_answered_by_a_verdict_goes() -> None:
    kept, text = ("Who built the tower?", "Edith Calloway"), f"{TEXT} Nobody knows all eyes that saw it."
    asked = passage(kept, ("Was it built after Talden?", "no"), ("Was it built?", "yes"), text=text)
    made = renamed(asked, names_in(OTHERS), random.Random(0))
    assert made is not None and "no" in made.context and "yes" in made.context
    assert [q.text for q in made.questions] == [kept[0]]


@pytest.mark.usefixtures("all_change")
def test_a_question_that_holds_its_answer_goes() -> None:
    asked = passage(("Who is edith calloway?", "Edith Calloway"), ("Who built it?", "Edith Calloway"))
    asked_of_others = passage(("Who is Edith Calloway?", "Edith Calloway"), ("Who built it?", "Edith Calloway"))
    for given, left in ((asked, 2), (asked_of_others, 1)):
        made = renamed(given, names_in(OTHERS), random.Random(0))
        assert made is not None and len(made.questions) == left


@pytest.mark.usefixtures("all_change")
def test_a_name_that_begins_as_a_month_does_is_none() -> None:
    text = "It stands at 12 Marchand, and 3 Mayors saw it on 12 May 1902."
    for seed in range(20):
        made = renamed(passage(("Where?", "12 Marchand"), text=text), names_in(OTHERS), random.Random(seed))
        assert made is not None
        assert re.fullmatch(r"It stands at \d\d Marchand, and \d Mayors saw it on \d\d \w+ \d{4}\.", made.context)


def test_numbers_stay_as_long_and_years_stay_years() -> None:
    rng = random.Random(0)
    for digits in ("7", "42", "12345", "1003", "2098"):
        made = {module._other_digits(digits, rng) for _ in range(300)}
        assert {len(one) for one in made} == {len(digits)} and not any(one.startswith("0") for one in made)
        if len(digits) == 4:
            assert all(int(one) in module.YEARS and abs(int(one) - int(digits)) <= module.FAR for one in made)


def test_not_every_name_changes() -> None:
    made = [renamed(passage(("Who?", "Edith Calloway")), names_in(OTHERS), random.Random(n)) for n in range(200)]
    same = [m is None or "Edith Calloway" in m.context for m in made]
    assert 0.2 < sum(same) / 200 < 0.4


def test_a_share_of_the_training_passages_comes_once_more(tmp_path: Path) -> None:
    def paragraph(n: int) -> dict[str, object]:
        answer = {"text": f"Edith Calloway {n}", "answer_start": 0}
        return {"context": f"It was built by Edith Calloway {n}.", "qas": [{"question": "Who?", "answers": [answer]}]}

    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [{"paragraphs": [paragraph(n) for n in range(200)]}]}))
    data = {"dataset": "squad", "data_path": str(file), "eval_path": str(file)}

    def load(split: str = "train", limit: int | None = None, **more: object) -> list[Passage]:
        return load_passages(Config.model_validate({"data": data | more}).data, split, limit)

    made = [p for p in load(renamed=0.5) if p.id.startswith("renamed-")]
    assert len(load(renamed=0.5)) == 200 + len(made) and 45 <= len(made) <= 95
    assert all(p.questions[0].answers[0] in p.context for p in made)
    assert load(renamed=0.5) == load(renamed=0.5) != load(renamed=0.5, seed=1)
    assert load(limit=60, renamed=0.5) == load(renamed=0.5)[:60], "a limit leaves it known what each is of"
    assert len(load()) == len(load("validation", renamed=0.5)) == 200
    assert len(list(renamed_passages(load(), 1.0, 0))) > 100
    with pytest.raises(ConfigError, match=r"data\.renamed"):
        config_from_dict({"data": {"renamed": 1.5}}, "test", {})
