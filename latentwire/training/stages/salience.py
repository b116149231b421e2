"""Before all other stages: which tokens of a text somebody asks about, where `encoder.keep_by` is salience.

Ridge regression of two marks of each token, part of an answer and word of a question, on what the untouched sender's
model makes of it. Passages with their questions teach it; what it chooses later, it chooses without seeing a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latentwire.core.errors import TrainingError
from latentwire.data.asked import Span, answer_spans, common_words, question_spans
from latentwire.data.example import Passage
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.encoder.text import SenderText
from latentwire.training.stages.normal_equations import cholesky, gather

SentPassage = tuple[SenderText, Passage]


def fit_salience(
    encoder: BackboneEncoder, passages: Sequence[SentPassage], *, ridge: float, **gathering: Any
) -> dict[str, float]:
    """Fit an encoder's salience to passages with questions; returns how well it ranks tokens of those set aside.

    That is, for answers and for questions, the probability that a token of theirs gets more than another token (the
    area under the ROC curve). `ridge` is a share of the mean diagonal of X'X; other options are those of `gather`.
    TrainingError where nothing is asked.
    """
    salience, common = encoder.salience, common_words(passage for _, passage in passages)
    assert salience is not None

    def rows(batch: Sequence[SentPassage]) -> tuple[Tensor, Tensor]:
        x = torch.cat(encoder.salience_inputs([text for text, _ in batch]))
        return x, torch.cat([marks(text, passage, common) for text, passage in batch]).to(x.device)

    equations, x, y = gather(passages, rows, **gathering)
    mean_x, mean_y, _, xx, xy = equations.centred()
    if not mean_y.any():
        raise TrainingError(
            "encoder.keep_by: salience is learned from answers in passages, and from words that these share with their "
            "questions; there are none"
        )
    xx.diagonal().add_(ridge * xx.diagonal().mean())
    salience.set(mean_x, torch.cholesky_solve(xy, cholesky(xx)), mean_y)
    found = salience.probabilities(x)
    return {kind: auc(found[:, k], y[:, k]) for k, kind in enumerate(("answers", "questions"))}


def marks(text: SenderText, passage: Passage, common: set[str]) -> Tensor:
    """(T, 2) for each token of a text, special ones left out, 1 where its centre lies in an answer, or in a word of a
    question."""
    kinds = [answer_spans(passage), question_spans(passage, common)]
    centres = [_centre(text, *text.offsets[token]) for token in text.own_tokens]
    return torch.tensor([[float(_within(centre, spans)) for spans in kinds] for centre in centres])


def _centre(text: SenderText, first: int, end: int) -> float:
    """Of the characters of a token, white space before it left out."""
    piece = text.text[first:end]
    return (first + len(piece) - len(piece.lstrip()) + end - 1) / 2


def _within(place: float, spans: Sequence[Span]) -> bool:
    return any(first <= place < end for first, end in spans)


def auc(scores: Tensor, marked: Tensor) -> float:
    """The probability that what is marked scores higher than what is not (ties count half); 0.5 where all are alike."""
    scores, marked = scores.cpu(), marked.cpu()  # not every device has fp64
    yes, no = scores[marked > 0], scores[marked == 0]
    if not len(yes) or not len(no):
        return 0.5
    below = no.sort().values
    low, high = (torch.searchsorted(below, yes, right=right).double() for right in (False, True))
    return float(((low + high) / 2).mean() / len(no))
