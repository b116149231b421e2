"""Answer metrics as in the official SQuAD v1.1 script. No torch."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def f1_score(prediction: str, golds: Sequence[str]) -> float:
    """Best token F1 of a prediction against the accepted answers, between 0 and 1."""
    return max(_f1(normalize_answer(prediction).split(), normalize_answer(gold).split()) for gold in golds)


def _f1(prediction: list[str], gold: list[str]) -> float:
    same = sum((Counter(prediction) & Counter(gold)).values())
    if not same:
        return 0.0
    precision, recall = same / len(prediction), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1 where the normalised prediction equals an accepted answer, else 0."""
    return float(normalize_answer(prediction) in {normalize_answer(gold) for gold in golds})
