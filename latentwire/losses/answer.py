"""Cross-entropy on answer tokens."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def answer_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats per answer token: logits (tokens, vocabulary), targets (tokens,)."""
    return F.cross_entropy(logits, targets)


def first_token_accuracy(logits: Tensor, targets: Tensor, first: Tensor) -> Tensor:
    """Share of answers whose first token is the most likely one; first (tokens,) marks the answers' beginnings."""
    return (logits[first].argmax(-1) == targets[first]).float().mean()
