"""Passages once more, under other names and with other numbers.

A model that has seen a passage a few times answers questions on it from memory. Where names and numbers are others, the
same ones in passage, questions and answers, it has to read (entity substitution, Longpre et al. 2021, arXiv
2109.05052). The names come from other passages, so that sense suffers; what is asked and where it stands does not.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from latentwire.data.asked import VERDICTS
from latentwire.data.cloze import mentioned
from latentwire.data.example import Passage, Question

RENAMED = "renamed-"
"""How such passages are numbered."""
CHANGED = 0.7
"""How likely a name or a number is changed, all its mentions alike."""
YEARS, FAR = range(1000, 2100), 80
"""Numbers that are taken for years, and how far they are moved at most."""
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October"),
    *("November", "December"),
)

Names = Mapping[int, Sequence[str]]
"""Number of words -> names of so many words."""


def renamed_passages(passages: Sequence[Passage], share: float, seed: int) -> Iterator[Passage]:
    """A share (0 to 1) of passages once more, drawn and changed with `seed`; without those in which nothing changes."""
    names = names_in(passage.context for passage in passages)
    for number, passage in enumerate(passages):
        rng = random.Random(f"renamed-{seed}-{number}")
        if rng.random() < share:
            made = renamed(passage, names, rng)
            if made is not None:
                yield made


def renamed(passage: Passage, names: Names, rng: random.Random) -> Passage | None:
    """A passage under other names; None where nothing changes or no question is left.

    Answers go that no longer stand in the passage, and questions that are left without one or hold it. So do verdicts
    such as "no": other numbers may turn them round, and where they stand in a passage they are not meant.
    """
    change = _changes(passage.context, names, rng)
    context = change(passage.context)
    asked = []
    for question in passage.questions:
        said = (change(answer) for answer in question.answers if answer not in VERDICTS)
        text, answers = change(question.text), tuple(answer for answer in said if answer in context)
        if answers and answers[0].lower() not in text.lower():
            asked.append(Question(question.id, text, answers))
    if context == passage.context or not asked:
        return None
    return Passage(f"{RENAMED}{passage.id}", context, tuple(asked), passage.context)


def names_in(texts: Iterable[str]) -> Names:
    """All names in some texts, as often as they stand there."""
    found = defaultdict(list)
    for text in texts:
        for mention in mentioned(text):
            if not _has_digit(mention) and mention not in MONTHS:
                found[len(mention.split())].append(mention)
    return found


def _changes(text: str, names: Names, rng: random.Random) -> Callable[[str], str]:
    """What gives a text, or a question on it, the other names.

    One word of a longer name changes as it does there, and the last one also where it may be no name: a surname that
    begins a sentence.
    """
    others: dict[str, str] = {}
    words: dict[str, str] = {}
    for mention in sorted(dict.fromkeys(mentioned(text)), key=len, reverse=True):
        own = mention.split()
        if mention in words:
            others[mention] = words[mention]
        elif rng.random() >= CHANGED:
            continue
        elif mention in MONTHS or _has_digit(mention):
            others[mention] = _another_number(mention, rng)
        elif len(own) in names:
            others[mention] = rng.choice(names[len(own)])
            new = others[mention].split()
            words = {old: name for old, name in zip(own, new, strict=True) if old[0].isupper()} | words
            if len(own) > 1:
                others.setdefault(own[-1], new[-1])
    if not others:
        return lambda given: given
    longest_first = sorted(others, key=len, reverse=True)
    found = re.compile(rf"(?<![\w.,-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-])")
    return lambda given: found.sub(lambda match: others[match[0]], given)


def _another_number(mention: str, rng: random.Random) -> str:
    """A number of as many digits, or a year nearby; with it another month, where it is a date."""
    with_month = re.sub(rf"\b(?:{'|'.join(MONTHS)})\b", lambda _: rng.choice(MONTHS), mention)
    return re.sub(r"\d+", lambda digits: _other_digits(digits[0], rng), with_month)


def _other_digits(digits: str, rng: random.Random) -> str:
    if len(digits) == len(str(YEARS.start)) and int(digits) in YEARS:
        moved = int(digits) + rng.choice((-1, 1)) * rng.randint(1, FAR)
        return str(min(YEARS.stop - 1, max(YEARS.start, moved)))
    first = str(rng.randint(2 if len(digits) == 1 else 1, 9))
    return first + "".join(str(rng.randint(0, 9)) for _ in digits[1:])


def _has_digit(mention: str) -> bool:
    return any(map(str.isdigit, mention))
