"""Run receivers over held-out questions: every answer, score and message, before any mean is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from latentwire.core.batches import batched
from latentwire.core.metrics import exact_match, f1_score
from latentwire.core.names import LATENT
from latentwire.data.example import Passage, Question
from latentwire.encoder.text import SenderText
from latentwire.evaluation.modes import MODES, Given, Mode
from latentwire.model.encoding import ReceiverText
from latentwire.model.receiver import Receiver
from latentwire.model.system import LatentWire
from latentwire.wire.message import Wire

ENCODED_TOGETHER = 8
"""Passages whose messages are made in one batch."""


@dataclass(frozen=True)
class Item:
    """A passage, as text, as the message that carries it, and as each receiver would tokenize it."""

    passage: Passage
    sent: SenderText
    message: bytes
    texts: dict[str, ReceiverText]


@dataclass
class Answer:
    """One receiver's answer to one question in one mode; `attention` is what `attention_on_latents` gives, if asked.

    positions: all that the receiver was given, the question included.
    """

    prediction: str
    f1: float
    em: float
    nll: float  # nats over the first gold answer's tokens
    tokens: int
    first_correct: bool
    positions: int
    attention: list[float] | None = None


@dataclass
class Answers:
    """All answers: [receiver][mode], in the order of `questions`; `clusters` number the item of each question."""

    items: Sequence[Item] = ()
    questions: list[Question] = field(default_factory=list)
    clusters: list[int] = field(default_factory=list)
    by_mode: dict[str, dict[str, list[Answer]]] = field(default_factory=dict)
    joint: list[str] = field(default_factory=list)


@torch.no_grad()
def encode_items(system: LatentWire, passages: Sequence[Passage], codec: str) -> list[Item]:
    """Compress every passage once, into bytes; ModelError where a model's window is too short for one."""
    items = []
    for chunk in batched(passages, ENCODED_TOGETHER):
        prepared = [system.prepare_to_ask(p) for p in chunk]
        wires = system.sender.messages([sent for sent, _ in prepared], codec)
        for passage, (sent, texts), wire in zip(chunk, prepared, wires, strict=True):
            items.append(Item(passage, sent, wire.to_bytes(), texts))
    return items


def batches(items: Sequence[Item], questions: int) -> Iterator[list[Item]]:
    """Runs of items with about so many questions together."""
    batch: list[Item] = []
    for item in items:
        if batch and sum(len(i.passage.questions) for i in (*batch, item)) > questions:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def given_to(receiver: Receiver, batch: Sequence[Item]) -> Given:
    """What a receiver can read of some items; the latents come from the messages' bytes."""
    return Given([i.texts[receiver.name] for i in batch], [Wire.from_bytes(i.message) for i in batch])


@torch.no_grad()
def answer_batch(
    receiver: Receiver, mode: Mode, batch: Sequence[Item], max_new_tokens: int, candidates: int = 1
) -> list[Answer]:
    """Generate and score every question of a batch in one mode; each context is read once.

    candidates: see `latentwire.model.contexts.ContextReader.generate`; NLL and first tokens do not hang on it.
    """
    questions = [q for item in batch for q in item.passage.questions]
    counts = [len(item.passage.questions) for item in batch]
    tails = [receiver.prompt.tail(q.text) for q in questions]
    golds = [receiver.prompt.gold(q.answers[0]) for q in questions]
    with receiver.using(mode.adapter):
        context = mode.read(receiver, given_to(receiver, batch))
        read = [n for n, asked in zip(context.mask.sum(1).tolist(), counts, strict=True) for _ in range(asked)]
        scores = receiver.score(context.repeat(counts), list(zip(tails, golds, strict=True)))
        predictions = receiver.generate(context.repeat(counts), tails, max_new_tokens, candidates=candidates)
    return [
        Answer(
            text,
            f1_score(text, q.answers),
            exact_match(text, q.answers),
            float(scores.nll[i]),
            int(scores.tokens[i]),
            bool(scores.first_correct[i]),
            read[i] + len(tails[i]),
        )
        for i, (q, text) in enumerate(zip(questions, predictions, strict=True))
    ]


@torch.no_grad()
def rescore(receivers: Sequence[Receiver], batch: Sequence[Item], candidates: Sequence[Sequence[str]]) -> list[str]:
    """Joint answer of several receivers: for each question, the candidate with the highest summed log-probability.

    candidates[k] holds the k-th receiver's answers. An empty answer is a candidate only where all are empty.
    """
    questions = [q for item in batch for q in item.passage.questions]
    counts = [len(item.passage.questions) for item in batch]
    totals = torch.zeros(len(candidates), len(questions))
    for receiver in receivers:
        tails = [receiver.prompt.tail(q.text) for q in questions]
        with receiver.using(LATENT):
            context = MODES["latent"].read(receiver, given_to(receiver, batch))
            for k, texts in enumerate(candidates):
                answers = [receiver.prompt.answer(text) for text in texts]
                scores = receiver.score(context.repeat(counts), list(zip(tails, answers, strict=True)))
                totals[k] -= scores.nll.cpu()
    empty = torch.tensor([[not text for text in texts] for texts in candidates])
    best = totals.masked_fill(empty, -1e30).argmax(0).tolist()
    return [candidates[k][i] for i, k in enumerate(best)]


def answer_all(
    system: LatentWire,
    items: Sequence[Item],
    modes_of: Callable[[Receiver], Sequence[Mode]],
    *,
    batch_size: int,
    max_new_tokens: int,
    candidates: int = 1,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Answers:
    """Every receiver in every mode over all items, and the joint answers of all receivers from the wire."""
    out = Answers(items)
    out.questions = [q for item in items for q in item.passage.questions]
    out.clusters = [n for n, item in enumerate(items) for _ in item.passage.questions]
    groups = list(batches(items, batch_size))
    for name, receiver in system.receivers.items():
        out.by_mode[name] = {}
        for mode in modes_of(receiver):
            answers: list[Answer] = []
            for batch in groups:
                answers += answer_batch(receiver, mode, batch, max_new_tokens, candidates)
                report(f"{name} {mode.name}", len(answers), len(out.questions))
            out.by_mode[name][mode.name] = answers
    receivers = list(system.receivers.values())
    if len(receivers) > 1 and all("latent" in modes for modes in out.by_mode.values()):
        start = 0
        for batch in groups:
            end = start + sum(len(item.passage.questions) for item in batch)
            own = [[a.prediction for a in out.by_mode[r.name]["latent"][start:end]] for r in receivers]
            out.joint += rescore(receivers, batch, own)
            report("joint", end, len(out.questions))
            start = end
    return out
