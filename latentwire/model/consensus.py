"""The answer that is closest to all candidates: minimum Bayes risk decoding (Kumar and Byrne 2004, NAACL).

Where a reader is in doubt, its likeliest answer may be one of a kind, while several others share most of their words.
The one with the most in common with all, each counted by its probability, has the highest token F1 to be expected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from latentwire.core.metrics import exact_match, f1_score

SHARPNESS = 0.5
"""Power of the probabilities: on 200 questions F1 of two receivers was 0.531 and 0.453 by it, 0.525 and 0.431 by 1."""

ODDS = 20
"""A first token that is so many times less likely than the likeliest begins no candidate: none of four was missed."""


class Candidate(NamedTuple):
    """A possible answer, and the log-probability of its tokens."""

    text: str
    logp: float


def consensus(candidates: Sequence[Candidate]) -> str:
    """The candidate with the highest expected likeness to all, its own included; the first of equal ones."""
    likeliest = max(candidate.logp for candidate in candidates)
    weights = [math.exp(SHARPNESS * (candidate.logp - likeliest)) for candidate in candidates]

    def expected(answer: str) -> float:
        return sum(w * likeness(answer, other.text) for w, other in zip(weights, candidates, strict=True))

    return max((candidate.text for candidate in candidates), key=expected)


def likeness(one: str, other: str) -> float:
    """Token F1 of two answers, 1 for two that are equal or both empty."""
    return exact_match(one, [other]) or f1_score(one, [other])
