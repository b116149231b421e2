"""SQuAD v1.1 and v2.0 JSON (Rajpurkar et al. 2016, 2018), also used by many other sets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from latentwire.data.example import Passage, Question

UNANSWERABLE = "unanswerable"


def parse_squad(raw: Any, version2: bool = False) -> list[Passage]:
    """Passages of a parsed file. v1.1 leaves unanswerable questions out.

    v2.0 keeps them with the one answer "unanswerable", which the models are trained to say and are scored on.
    KeyError or TypeError where the structure is another one.
    """
    passages = []
    for a, article in enumerate(raw["data"]):
        for p, paragraph in enumerate(article["paragraphs"]):
            questions = []
            for q, qa in enumerate(paragraph["qas"]):
                if answers := answers_of((answer["text"] for answer in qa.get("answers", [])), version2):
                    questions.append(Question(str(qa.get("id", f"{a}-{p}-{q}")), qa["question"].strip(), answers))
            if questions and (context := paragraph["context"].strip()):
                passages.append(Passage(f"{a}-{p}", context, tuple(questions)))
    return passages


def answers_of(texts: Iterable[str], version2: bool) -> tuple[str, ...]:
    """The answers that a question has, each once; none where it is to be left out."""
    answers = tuple(filter(None, dict.fromkeys(text.strip() for text in texts)))
    return answers or ((UNANSWERABLE,) if version2 else ())


def squad_file(passages: Iterable[Passage], title: str) -> dict[str, Any]:
    """Passages whose answers stand in them as a v1.1 file, to be parsed again."""

    def answer(passage: Passage, text: str) -> dict[str, Any]:
        return {"text": text, "answer_start": passage.context.index(text)}

    paragraphs = [
        {
            "context": p.context,
            "qas": [
                {"id": q.id, "question": q.text, "answers": [answer(p, a) for a in q.answers]} for q in p.questions
            ],
        }
        for p in passages
    ]
    return {"version": "1.1", "data": [{"title": title, "paragraphs": paragraphs}]}
