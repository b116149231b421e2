"""Passages as token ids: once for the sender, once for each receiver, aligned by windows; and their batches."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from latentwire.backbone.lm import LanguageModel
from latentwire.backbone.padding import pad_right
from latentwire.config.layout import LatentLayout
from latentwire.data.example import Passage
from latentwire.data.prompts import PromptFormat
from latentwire.encoder import windows
from latentwire.encoder.base import TextCutter
from latentwire.encoder.text import SenderText, shift

EVERYTHING = LatentLayout()
"""As many latents as the text has windows, and every receiver reads them all."""


@dataclass(frozen=True)
class ReceiverText:
    """A text for a receiver: ids (head first), its latents M, its questions as (tail, answer), and what it was.

    `align` tells which of its tokens stand for those that the sender reads.
    """

    ids: list[int]
    head_len: int
    latents: int
    questions: list[tuple[list[int], list[int]]]
    text: str
    align: Callable[[], list[list[int]]] = field(compare=False, repr=False)

    @cached_property
    def phase_tokens(self) -> list[list[int]]:
        """(phases, M) indices into ids."""
        return self.align()

    @property
    def positions(self) -> int:
        """Most positions that the text takes, with one of its questions and the answer."""
        return len(self.ids) + max((len(tail) + len(answer) for tail, answer in self.questions), default=0)

    def cost(self, most: int) -> int:
        """About how many tokens a step reads of this passage, with at most `most` questions."""
        asked = sum(len(tail) + len(answer) for tail, answer in self.questions)
        return len(self.ids) + asked * min(most, len(self.questions)) // max(1, len(self.questions))

    def truncated(self, more: int = 0) -> list[int]:
        """The token budget: as many positions of text as the latents take, and `more` that features add to them."""
        return self.ids[: self.head_len + self.latents + more]


Prepared = tuple[SenderText, dict[str, ReceiverText]]
"""A text for the sender and, by name, for each receiver."""


def encode_for_sender(
    source: TextCutter,
    text: str,
    window: float,
    latent_len: int | None,
    layout: LatentLayout = EVERYTHING,
    choose: Callable[[SenderText], list[list[int]]] | None = None,
    across: bool = False,
) -> SenderText:
    """Tokenize a text for the sender and cut it into windows, of which `window` tokens each are read, or those that
    `choose` tells, of each window or `across` them.

    Where the layout fixes the number of latents, there are as many windows as one receiver reads latents.
    """
    ids, offsets = source.tokenize_with_offsets(text)
    if layout.read is None:
        cut = windows.split(offsets, window, latent_len)
    else:
        cut = windows.divide(offsets, layout.read, math.ceil(window))
    before, behind = source.frame
    return SenderText(
        text,
        before + ids + behind,
        [(0, 0)] * len(before) + offsets + [(0, 0)] * len(behind),
        len(ids),
        cut.starts,
        shift(cut.phase_tokens, len(before)),
        len(cut) if layout.total is None else layout.total,
        choose,
        across,
        len(before),
    )


def encode_for_receiver(lm: LanguageModel, prompt: PromptFormat, passage: Passage, sent: SenderText) -> ReceiverText:
    """Tokenize a passage and its questions for a receiver and assign its tokens to the sender's windows."""
    ids, offsets = lm.tokenize_with_offsets(passage.context)

    def align() -> list[list[int]]:
        return shift(sent.follow(offsets), len(prompt.head))

    questions = [(prompt.tail(q.text), prompt.answer(q.answers[0])) for q in passage.questions]
    return ReceiverText(prompt.head + ids, len(prompt.head), len(sent.starts), questions, passage.context, align)


Pair = tuple[list[int], list[int]]
"""A question as a receiver reads it, and the answer."""
SPAN_CUE, SPAN_LENGTH = 8, 24
"""Tokens of a span that are shown, and that are to be copied."""


@dataclass
class QuestionBlock:
    """Questions packed behind their contexts, one row a context: all (batch, Q).

    segments numbers the questions of a row from 1 (0 is padding); labels hold the answer tokens, -100 elsewhere; place
    counts the tokens of each answer from 0 (-1 elsewhere); spans marks labels that belong to a copied span rather than
    to an answer.
    """

    ids: Tensor
    mask: Tensor
    segments: Tensor
    labels: Tensor
    place: Tensor
    spans: Tensor

    @property
    def answer_tokens(self) -> int:
        """Tokens of answers, copied spans not among them."""
        return int(((self.labels >= 0) & ~self.spans).sum())

    def early(self, k: int) -> Tensor:
        """(batch, Q) True at the first k tokens of each answer, copied spans not among them."""
        return (self.place >= 0) & (self.place < k) & ~self.spans

    def contents(self) -> Tensor:
        """(batch, Q) True at the tokens of answers, without the one that ends an answer of several."""
        after = torch.nn.functional.pad(self.place[:, 1:], (0, 1), value=-1)
        return ((self.place == 0) | (after > 0)) & ~self.spans


def pack_questions(
    rows: Sequence[Sequence[Pair]],
    pad: int,
    device: torch.device | str = "cpu",
    spans: Sequence[Sequence[Pair]] | None = None,
) -> QuestionBlock:
    """Pack (tail, answer) pairs, several a row. One encoding of a passage then teaches all its questions.

    `spans` are packed behind a row's questions in the same form.
    """
    ids, segments, labels, place, copied = [], [], [], [], []
    for questions, more in zip(rows, spans or [[] for _ in rows], strict=True):
        row = [*questions, *more]
        copied.append([int(n >= len(questions)) for n, (tail, answer) in enumerate(row) for _ in tail + answer])
        ids.append([t for tail, answer in row for t in tail + answer])
        segments.append([n for n, (tail, answer) in enumerate(row, 1) for _ in tail + answer])
        labels.append([t for tail, answer in row for t in [-100] * len(tail) + answer])
        place.append([p for tail, answer in row for p in [-1] * len(tail) + list(range(len(answer)))])
    padded, mask = pad_right(ids, pad, device)
    return QuestionBlock(
        padded,
        mask,
        pad_right(segments, 0, device)[0],
        pad_right(labels, -100, device)[0],
        pad_right(place, -1, device)[0],
        pad_right(copied, 0, device)[0].bool(),
    )


def copy_spans(text: ReceiverText, prompt: PromptFormat, count: int, rng: random.Random) -> list[Pair]:
    """Spans of the passage to go on with from their first tokens: dense lessons in reading a context.

    The autoencoding task of ICAE (Ge et al. 2024, arXiv 2307.06945) in pieces, so that a span costs as little as a
    question. A passage too short for one gives none.
    """
    last = len(text.ids) - SPAN_CUE - SPAN_LENGTH
    if last < text.head_len:
        return []
    starts = [rng.randint(text.head_len, last) for _ in range(count)]
    ends = [start + SPAN_CUE for start in starts]
    return [
        (prompt.span() + text.ids[start:end], text.ids[end : end + SPAN_LENGTH])
        for start, end in zip(starts, ends, strict=True)
    ]


def choose_questions(questions: list[Pair], most: int, rng: random.Random) -> list[Pair]:
    """At most `most` of a passage's questions, drawn anew each time."""
    return questions if len(questions) <= most else rng.sample(questions, most)
