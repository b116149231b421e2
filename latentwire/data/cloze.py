"""Questions made from plain text: a name or a number is left out of the few words around it.

Cloze questions as in unsupervised question answering (Lewis et al. 2019, arXiv 1906.04980), without the translation
into real ones: any text teaches where in it something is said, and to say it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator

from latentwire.data.example import Passage, Question

BLANK = "____"
CLOZE = "cloze-"
"""How such passages are numbered."""
BEFORE, AFTER = 10, 6
"""Most words of the sentence that are shown on each side of the blank."""
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'])")
NAME = r"[A-Z][\w'\u2019-]*\w(?: (?:(?:of|the|de|van|von) )?[A-Z][\w'\u2019-]*\w){0,4}"
NUMBER = r"\d+(?:[.,]\d+)*"
CANDIDATE = re.compile(rf"(?<![\w.,-])(?:{NUMBER} {NAME}(?: {NUMBER})?|{NAME}(?: {NUMBER})?|{NUMBER})(?![\w-])")


def cloze_passages(texts: Iterable[str], most: int, seed: int) -> Iterator[Passage]:
    """Texts with at most `most` cloze questions each, drawn with `seed`; a text that gives none is left out."""
    for number, text in enumerate(texts):
        found = list(cloze_questions(text))
        chosen = random.Random(f"cloze-{seed}-{number}").sample(found, min(most, len(found)))
        if chosen:
            questions = (Question(f"{CLOZE}{number}-{n}", asked, (answer,)) for n, (asked, answer) in enumerate(chosen))
            yield Passage(f"{CLOZE}{number}", text, tuple(questions))


def cloze_questions(text: str) -> Iterator[tuple[str, str]]:
    """Every cloze question of a text, with its answer.

    What is shown does not hold the answer, and has words on both sides of the blank or three on one.
    """
    for sentence in SENTENCE.split(text):
        for start, end in mentions(sentence):
            answer = sentence[start:end]
            before = sentence[:start].split()[-BEFORE:]
            after = sentence[end:].rstrip(".!?").split()[:AFTER]
            asked = " ".join([*before, BLANK, *after])
            if answer not in asked and (len(before) + len(after) > 2 or (before and after)):
                yield asked, answer


def mentioned(text: str) -> list[str]:
    """The names and numbers of a text, in order, those of a single character left out."""
    return [s[start:end] for s in SENTENCE.split(text) for start, end in mentions(s) if end - start > 1]


def mentions(sentence: str) -> Iterator[tuple[int, int]]:
    """Where names and numbers stand in a sentence: the first character of each, and the one behind it."""
    for found in CANDIDATE.finditer(sentence):
        words = found[0] if found.start() else _without_opening(found[0])
        if words:
            yield found.end() - len(words), found.end()


def _without_opening(words: str) -> str:
    """What begins a sentence without its first word, whose capital says nothing where none follows."""
    first, *rest = words.split()
    if first[0].isdigit() or (rest and rest[0][0].isupper()):
        return words
    return " ".join(rest[1:] if rest and rest[0][0].islower() else rest)
