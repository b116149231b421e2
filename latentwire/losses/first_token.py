"""The first token of an answer, which decides most of the rest."""

from __future__ import annotations

import torch
from torch import Tensor


def prediction_entropy(logits: Tensor) -> Tensor:
    """Mean entropy in nats of predictions (n, vocabulary).

    Taken as a bonus, it keeps a model from settling on one frequent token (confidence penalty, Pereyra et al. 2017,
    arXiv 1701.06548).
    """
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1).mean()


def first_token_accuracy(logits: Tensor, targets: Tensor, first: Tensor) -> Tensor:
    """Share of answers whose first token is the most likely one: logits (tokens, vocabulary), targets (tokens,); first
    (tokens,) marks the answers' beginnings."""
    return (logits[first].argmax(-1) == targets[first]).float().mean()
