"""What all data sets become."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers; the first one is trained on."""

    id: str
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Passage:
    """A context with the questions that are asked about it."""

    id: str
    context: str
    questions: tuple[Question, ...]
