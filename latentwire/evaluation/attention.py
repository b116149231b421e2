"""How much a receiver looks at each latent while it answers."""

from __future__ import annotations

import torch

from latentwire.backbone.padding import pad_left
from latentwire.data.example import Question
from latentwire.evaluation.answering import Item, given_to
from latentwire.evaluation.modes import MODES
from latentwire.model.receiver import Receiver


@torch.no_grad()
def attention_on_latents(receiver: Receiver, item: Item, question: Question, answer: str) -> list[float]:
    """The share of attention on each latent that the receiver reads of an item, (M,), in the order of its windows.

    The mean over layers and heads, and over the positions from which the answer's tokens, its end included, are
    predicted. What is missing to 1 went to the head, the question, the answer itself and what features add.
    """
    mode = MODES["latent"]
    tail, said = receiver.prompt.tail(question.text), receiver.prompt.answer(answer)
    ids, mask = pad_left([tail + said], receiver.lm.pad_id, receiver.lm.device)
    with receiver.using(mode.adapter):
        context = mode.read(receiver, given_to(receiver, [item]))
        with receiver.reading(context), receiver.lm.attention() as layers:
            receiver.lm.continue_from(context, ids, mask)
    weights = torch.stack([layer[0].float().cpu() for layer in layers])  # (layers, heads, Q, K)
    mean = weights[:, :, len(tail) - 1 : -1].mean((0, 1, 2))
    text = item.texts[receiver.name]
    return [round(share, 5) for share in mean[text.head_len : text.head_len + text.latents].tolist()]
