"""Alignment of a message with the answers that it should give."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def answer_alignment(parts: Tensor, mask: Tensor, answers: Tensor, asked: Tensor) -> Tensor:
    """1 - the cosine similarity of each answer to the closest position of its message; mean over answers and heads.

    parts: (batch, M, heads, d), of which mask (batch, M) tells the real ones; answers: (batch, n, heads, d), of which
    asked (batch, n). The closest position, rather than their mean, because one message serves many questions: the
    maximum similarity of ColBERT (Khattab & Zaharia 2020, arXiv 2004.12832).
    """
    similar = F.normalize(answers, dim=-1).transpose(1, 2) @ F.normalize(parts, dim=-1).permute(0, 2, 3, 1)
    closest = similar.masked_fill(~mask[:, None, None, :], -1.0).amax(-1)  # (batch, heads, n)
    return 1.0 - closest.transpose(1, 2)[asked].mean()
