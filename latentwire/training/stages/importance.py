"""How much answers hang on each number that a receiver reads: the squared gradient of the answer loss, times the
number's variance (the diagonal of the empirical Fisher information, scaled).

Of what a generator has to make, it tells the closed form where latents should be exact. Of a text that the receiver
reads itself, it tells by KV head which few of them find what is asked about (`deep_prefix.ranked`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from latentwire.backbone.padding import pad_right
from latentwire.core.batches import batched
from latentwire.core.names import LATENT, TEXT
from latentwire.encoder.text import stack_phases
from latentwire.features.lora.feature import base_model
from latentwire.model.encoding import ReceiverText
from latentwire.model.receiver import Receiver
from latentwire.reader.base import Reader
from latentwire.reader.slots import SlotReader
from latentwire.training.stages.normal_equations import shared_variance, unpadded

BATCH = 4
"""Texts read together."""
NAMED = 8
"""Heads that are named of those that matter most."""

Given = tuple[Sequence[ReceiverText], Tensor, Tensor]
"""Texts, what a reader gives the model of them (batch, n, d_out), and how many of these n are real (batch,)."""


def importance_of(receiver: Receiver, texts: Sequence[ReceiverText], floor: float) -> Tensor:
    """(d_out,) weight of the squared error of each number that the receiver's generator has to make.

    A share `floor` of what they weigh together is spread evenly over the scaled targets, so that none is given up.
    """
    given = ((batch, *receiver.targets(batch)) for batch in batched(texts, BATCH))
    share, variance = _shares(receiver, receiver.reader, LATENT, given)
    return ((1 - floor) * share / share.mean() + floor) / variance


def rank_heads(receiver: Receiver, texts: Sequence[ReceiverText]) -> Tensor:
    """Give a receiver's heads their tokens by how much answers hang on each; returns that, (layers, kv_heads), as
    shares of 1. For that it reads every token of the texts, with the LoRA tuned on text if it has one.
    """
    assert isinstance(receiver.reader, SlotReader)
    head = receiver.prompt.head
    reader = SlotReader.of_tokens(receiver.lm.anatomy, len(head)).to(receiver.lm.device)
    reader.reset_head(receiver.lm, head)
    given = ((batch, *_every_token(receiver, reader, batch)) for batch in batched(texts, BATCH))
    share = _shares(receiver, reader, TEXT, given)[0].view(reader.shape).sum((2, 3))
    receiver.reader.order_heads(share)
    return share / share.sum()


def largest(share: Tensor) -> dict[str, float]:
    """The heads with the largest shares (layers, kv_heads), as "layer.head"."""
    parts, places = share.flatten().topk(min(NAMED, share.numel()))
    heads = ("{}.{}".format(*divmod(place, share.shape[1])) for place in places.tolist())
    return {head: round(part, 3) for head, part in zip(heads, parts.tolist(), strict=True)}


def _every_token(receiver: Receiver, reader: SlotReader, texts: Sequence[ReceiverText]) -> tuple[Tensor, Tensor]:
    lm, first = receiver.lm, len(receiver.prompt.head)
    ids, mask = pad_right([text.ids for text in texts], lm.pad_id, lm.device)
    tokens, counts = stack_phases([[list(range(first, len(text.ids)))] for text in texts], lm.device)
    with torch.no_grad(), base_model(lm.model):
        return reader.targets(lm, ids, mask, tokens), counts


def _shares(receiver: Receiver, reader: Reader, adapter: str, given: Iterator[Given]) -> tuple[Tensor, Tensor]:
    """(d_out,) how much of the answer loss hangs on each number's variation, and that variance."""
    total, seen = torch.zeros(1, device=receiver.lm.device), []
    for number, (texts, values, counts) in enumerate(given):
        values = values.float().requires_grad_(True)
        block = receiver.pack(texts, random.Random(number * BATCH), copying=False)
        with receiver.using(adapter, dropout=False):
            terms = receiver.loss(reader.context(receiver.lm, values, counts), block)
        (gradient,) = torch.autograd.grad(terms.total, values)
        total = total + gradient.pow(2).sum((0, 1))
        seen.append(unpadded(values.detach(), counts))
    variance = shared_variance(torch.cat(seen).var(0), reader.target_groups().to(total.device)).clamp(min=1e-12)
    return total * variance, variance
