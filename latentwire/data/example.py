"""What all data sets become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from latentwire.core.hashing import stable_hash


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers; the first one is trained on."""

    id: str
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Passage:
    """A context with the questions that are asked about it.

    origin: the context that it is under other names.
    """

    id: str
    context: str
    questions: tuple[Question, ...]
    origin: str | None = None


def data_fingerprint(passages: Sequence[Passage]) -> str:
    """Hash of passages with their questions and answers."""
    return stable_hash([[p.context, [[q.text, list(q.answers)] for q in p.questions]] for p in passages])
