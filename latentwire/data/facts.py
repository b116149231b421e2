"""`facts`: short passages on invented people, places and things, whose answers nobody can know without the passage.

Each passage holds three entities of one kind, with the same facts about each: naming a value of the right type is a
guess among three at best. Names are made of syllables; a name belongs to the training or to the validation split by
its hash, so the splits share none.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

from latentwire.data.example import Passage, Question
from latentwire.data.facts_templates import COMPANIES, OBJECTS, SHAPES, SHIPS, TEAMS, VALUES

ENTITIES = 3
_STARTS = (
    *("Bra", "Cor", "Dal", "Fen", "Gri", "Hol", "Jar", "Kel", "Lor", "Mir", "Nev", "Ost", "Pel"),
    *("Quo", "Ras", "Sten", "Tor", "Ul", "Vesh", "Wil", "Yar", "Zel", "Amb", "Eld", "Ith"),
)
_MIDDLES = ("a", "e", "i", "o", "u", "an", "en", "ar", "or", "il", "is", "ath", "em", "ov")
_PERSON_ENDS = ("dric", "la", "mund", "na", "rian", "sa", "ton", "vin", "wyn", "ko", "bert", "ra")
_FAMILY_ENDS = ("berg", "dahl", "feld", "gard", "holt", "kov", "lund", "mar", "nov", "quist", "sen", "vale")
_TOWN_ENDS = ("burg", "by", "dale", "ford", "ham", "mouth", "stead", "ville", "wick", "worth", "haven", "moor")
TRAIN, VALIDATION = "train", "validation"


def split_of(name: str) -> str:
    """The split to which a made-up name belongs: one in four is kept for validation."""
    return VALIDATION if zlib.crc32(name.encode()) % 4 == 0 else TRAIN


def make_facts(seed: int, split: str, questions: int) -> list[Passage]:
    """Passages of a split with at least so many questions; the same for a seed on every machine."""
    passages: list[Passage] = []
    count = 0
    while count < questions:
        number = len(passages)
        passage = _passage(random.Random(f"facts-{seed}-{split}-{number}"), split, f"{split}-{number}")
        count += len(passage.questions)
        passages.append(passage)
    return passages


def _passage(rng: random.Random, split: str, id: str) -> Passage:
    shape = rng.choice(SHAPES)
    names = _Names(rng, split)
    entities = [names.entity(shape.entity) for _ in range(ENTITIES)]
    facts = [(entity, fact) for entity in entities for fact in rng.sample(shape.facts, 2)]
    rng.shuffle(facts)
    sentences: list[str] = []
    asked: list[Question] = []
    for entity, fact in facts:
        kind, wordings, questions = fact
        value = names.value(kind)
        sentences.append(_sentence(rng.choice(wordings), entity, value))
        asked.append(Question(f"{id}-{len(asked)}", rng.choice(questions).format(e=entity), (value,)))
    opening, closing = rng.choice(shape.openings).format(p=names.value("town")), rng.choice(shape.closings)
    return Passage(id, " ".join([opening, *sentences, closing]), tuple(asked))


def _sentence(wording: str, entity: str, value: str) -> str:
    text = wording.format(e=entity, v=value)
    for vowel in "aeiou":  # "a owl" is not English
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return text[0].upper() + text[1:]


class _Names:
    """Values and names of one passage, none of them used twice."""

    def __init__(self, rng: random.Random, split: str):
        self.rng = rng
        self.split = split
        self.used: set[str] = set()
        self.kinds: dict[str, Callable[[], str]] = {
            "person": self.person,
            "town": lambda: self._word(_TOWN_ENDS),
            "place": lambda: self._word(_TOWN_ENDS),
            "year": lambda: str(rng.randint(1420, 1960)),
            "number": lambda: str(rng.randint(12, 980)),
            "object": lambda: rng.choice(OBJECTS).format(n=self._word(_FAMILY_ENDS)),
            "team": lambda: rng.choice(TEAMS).format(n=self._word(_TOWN_ENDS)),
            "company": lambda: rng.choice(COMPANIES).format(n=self._word(_FAMILY_ENDS)),
            "ship": lambda: rng.choice(SHIPS).format(n=self._word(_PERSON_ENDS)),
        }

    def _word(self, ends: tuple[str, ...]) -> str:
        """A made-up word of this passage's split."""
        while True:
            word = self.rng.choice(_STARTS) + self.rng.choice(_MIDDLES) + self.rng.choice(ends)
            if split_of(word) == self.split:
                return word

    def person(self) -> str:
        return f"{self._word(_PERSON_ENDS)} {self._word(_FAMILY_ENDS)}"

    def entity(self, kind: str) -> str:
        return self._fresh(self.kinds[kind])

    def value(self, kind: str) -> str:
        return self._fresh(self.kinds.get(kind) or (lambda: self.rng.choice(VALUES[kind])))

    def _fresh(self, make: Callable[[], str]) -> str:
        """A value that neither holds nor is held by another one of the passage, so that it occurs in it once."""
        while True:
            value = make()
            if not any(value in other or other in value for other in self.used):
                self.used.add(value)
                return value
