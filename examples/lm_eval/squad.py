"""Data and scores of squad.yaml. Documents keep their passage in `context`, so the harness's latents are made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from latentwire.config.sections.inputs import DataConfig
from latentwire.core.metrics import exact_match, f1_score
from latentwire.data import load_passages

QUESTIONS = Path(__file__).resolve().parents[1] / "questions.json"


def questions(data_path: str = str(QUESTIONS), **_: Any) -> dict[str, Dataset]:
    """All questions of a file in SQuAD v1.1 format; without one, those of examples/questions.json."""
    passages = load_passages(DataConfig(dataset="squad", eval_path=data_path), "validation")
    rows = [
        {"id": question.id, "context": passage.context, "question": question.text, "answers": list(question.answers)}
        for passage in passages
        for question in passage.questions
    ]
    return {"validation": Dataset.from_list(rows)}


def scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """F1 and EM of an answer, as `latentwire eval` scores it."""
    answer = results[0].strip()
    return {"f1": f1_score(answer, doc["answers"]), "exact_match": exact_match(answer, doc["answers"])}
