"""What of a passage its questions are about: where answers stand in it, and words of the questions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from latentwire.data.example import Passage
from latentwire.data.squad import UNANSWERABLE

Span = tuple[int, int]
VERDICTS = {"yes", "no", UNANSWERABLE}
"""Answers that are not said by the words in the passage that look like them."""
COMMON = 0.25
"""A word that stands in more than this share of passages tells none of them from another."""


def words(text: str) -> set[str]:
    """The words of a text, in lower case."""
    return set(re.findall(r"\w+", text.lower()))


def common_words(passages: Iterable[Passage]) -> set[str]:
    """Words that stand in many of some passages, whatever they are about."""
    each = [words(passage.context) for passage in passages]
    counts = Counter(word for of_one in each for word in of_one)
    return {word for word, count in counts.items() if count > COMMON * len(each)}


def answer_spans(passage: Passage) -> list[Span]:
    """The characters of every place where the first answer to one of its questions stands, unless that is a verdict."""
    answers = {question.answers[0] for question in passage.questions if question.answers} - VERDICTS
    found = (re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", passage.context) for answer in sorted(answers) if answer)
    return [match.span() for matches in found for match in matches]


def question_spans(passage: Passage, common: set[str]) -> list[Span]:
    """The characters of every word that is also one of its questions', common words left out."""
    wanted = {word for question in passage.questions for word in words(question.text)} - common
    return [match.span() for match in re.finditer(r"\w+", passage.context) if match.group().lower() in wanted]
