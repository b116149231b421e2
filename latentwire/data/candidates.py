"""What of a text a question might ask for: its names and numbers, and some short phrases without any."""

from __future__ import annotations

import random
import re

from latentwire.data.cloze import SENTENCE, mentioned

PHRASES = 0.3
"""About so many of the candidates are phrases."""
FEWEST = 3
"""A phrase has more characters than this."""
PHRASE = re.compile(
    r"\b(?:the|a|an|of|by|in|as|for|to|with|from|was|were|is|are) ((?:[a-z][a-z'-]+ ?){1,4})"
    r"(?=[,.;)]| and | of | in | that | which | to | by )"
)
"""Up to four words in lower case, from an article, a preposition or a form of "be" to where a phrase may end."""


def likely_answers(text: str, most: int, rng: random.Random) -> list[str]:
    """At most `most` candidates of a text, drawn by chance, each once."""
    named = _some(set(mentioned(text)), rng)
    found = (phrase.strip() for sentence in SENTENCE.split(text) for phrase in PHRASE.findall(sentence))
    phrases = _some({phrase for phrase in found if len(phrase) > FEWEST}, rng)
    room = min(len(phrases), max(1, round(most * PHRASES)))
    return [*named[: most - room], *phrases][:most]


def _some(found: set[str], rng: random.Random) -> list[str]:
    return rng.sample(sorted(found), len(found))
