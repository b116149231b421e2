"""Questions that a model asks on plain text, to train on.

A receiver gets LoRA to ask from the very pairs by which it learns to answer: passage and answer, then the question.
Asked for candidates of a new text, it makes many questions, some of them bad; those are kept whose answer the receiver
finds in the text by itself (roundtrip consistency, Alberti et al. 2019, arXiv 1906.05416).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from latentwire.checkpoint.tensors import load_folder, save_folder
from latentwire.checkpoint.training_state import prune_states
from latentwire.config import Config
from latentwire.core.batches import batched
from latentwire.core.errors import TrainingError
from latentwire.core.names import ASKING, TEXT
from latentwire.core.seeds import seed_everything
from latentwire.data.candidates import likely_answers
from latentwire.data.example import Passage, Question
from latentwire.diagnostics.progress import StepLog
from latentwire.model.encoding import Pair, ReceiverText
from latentwire.model.receiver import Receiver
from latentwire.training.loop import Trainer
from latentwire.training.stages.slot_tuning import SlotTuning

BATCH = 12
"""Texts read together."""
LONGEST = 32
"""Most tokens of a question."""


class MadeQuestion(NamedTuple):
    """A question that a model asked on a text, the answer that it was asked for, and how far that was expected by the
    reader of the text, in nats a token."""

    question: str
    answer: str
    nll: float


class Questioner:
    """A receiver that asks. Its LoRA is kept in `folder`, and while it is tuned the states to go on from."""

    def __init__(self, receiver: Receiver, config: Config, folder: Path):
        if TEXT not in receiver.adapters:
            raise TrainingError(f"receiver {receiver.name!r}: it has no LoRA tuned on text, to tell good questions by")
        self.receiver = receiver
        self.config = config
        self.folder = folder
        self.done = folder / "done"

    def tune(self, passages: Sequence[Passage], steps: int) -> None:
        """Learn to ask from passages with questions, or take up what was learned before."""
        if self.done.is_dir():
            self.receiver.add_adapter(ASKING).load_state_dict(load_folder(self.done)["lora"])
            return
        asked = [(p.context, [(q.answers[0], q.text) for q in p.questions]) for p in passages]
        texts = [text for text in (self._read(*one) for one in asked) if self._fits(text)]
        if not texts:
            raise TrainingError("data: no training passage is short enough for data.max_context_tokens")
        seed_everything(self.config.system.seed)
        module = SlotTuning(self.receiver, texts, self.config, ASKING)
        trainer = Trainer(module, self.config, self.folder, steps)
        trainer.restore()
        log = StepLog(lambda record: None, self.config.diagnostics.log_every, steps, trainer.step, module.name)
        trainer.callbacks.append(log)
        trainer.fit()
        save_folder(self.done, module.state_dict(), {"step": trainer.step})
        prune_states(self.folder, keep=0)

    def ask(self, texts: Sequence[str], most: int) -> Iterator[tuple[str, list[MadeQuestion]]]:
        """At most `most` questions on each text that is short enough; the shortest texts first."""
        draws = [random.Random(f"asked-{self.config.data.seed}-{text}") for text in texts]
        plain = [(text, likely_answers(text, most, rng)) for text, rng in zip(texts, draws, strict=True)]
        ready = [(text, answers) for text, answers in plain if answers and self._fits(self._read(text))]
        ready.sort(key=lambda one: len(one[0]))
        for batch in batched(ready, BATCH):
            questions = self._questions(batch)
            pairs = [list(zip(own, answers, strict=True)) for own, (_, answers) in zip(questions, batch, strict=True)]
            sound = [[pair for pair in own if _sound(*pair)] for own in pairs]
            known = self._expected([text for text, _ in batch], sound)
            for (text, _), own, nlls in zip(batch, sound, known, strict=True):
                yield text, [MadeQuestion(*pair, nll) for pair, nll in zip(own, nlls, strict=True)]

    @torch.no_grad()
    def _questions(self, batch: Sequence[tuple[str, list[str]]]) -> list[list[str]]:
        prompt, counts = self.receiver.prompt, [len(answers) for _, answers in batch]
        with self.receiver.using(ASKING):
            context = self.receiver.read_text([self._read(text).ids for text, _ in batch]).repeat(counts)
            tails = [prompt.tail(answer) for _, answers in batch for answer in answers]
            made = iter(self.receiver.generate(context, tails, LONGEST))
        return [[next(made) for _ in range(count)] for count in counts]

    @torch.no_grad()
    def _expected(self, texts: Sequence[str], pairs: Sequence[Sequence[tuple[str, str]]]) -> list[list[float]]:
        """How far the reader of the text expects each answer, in nats a token."""
        read, counts = [self._read(text, own) for text, own in zip(texts, pairs, strict=True)], list(map(len, pairs))
        if not any(counts):
            return [[] for _ in texts]
        with self.receiver.using(TEXT):
            context = self.receiver.read_text([text.ids for text in read]).repeat(counts)
            scores = self.receiver.score(context, [pair for text in read for pair in text.questions])
        nlls = iter((scores.nll / scores.tokens).tolist())
        return [[next(nlls) for _ in range(count)] for count in counts]

    def _read(self, context: str, pairs: Sequence[tuple[str, str]] = ()) -> ReceiverText:
        """A text and (asked, wanted) pairs on it as the receiver's tokens."""
        prompt, ids = self.receiver.prompt, self.receiver.lm.tokenize_with_offsets(context)[0]
        questions: list[Pair] = [(prompt.tail(asked), prompt.answer(wanted)) for asked, wanted in pairs]
        return ReceiverText(prompt.head + ids, len(prompt.head), 0, questions, context, list)

    def _fits(self, text: ReceiverText) -> bool:
        most = min(self.config.data.max_context_tokens, self.receiver.lm.anatomy.max_positions - 2 * LONGEST)
        return len(text.ids) - text.head_len <= most


def _sound(question: str, answer: str) -> bool:
    """Whether it is a question at all, and does not hold its answer."""
    return question.endswith("?") and answer.lower() not in question.lower()


def kept(asked: Sequence[tuple[str, Sequence[MadeQuestion]]], worst: float) -> list[Passage]:
    """Texts with those questions, each once, whose answer has at most `worst` nats a token."""
    passages = []
    for number, (text, questions) in enumerate(asked):
        good = {one.question: one.answer for one in questions if one.nll <= worst}
        numbered = (Question(f"asked-{number}-{n}", question, (good[question],)) for n, question in enumerate(good))
        passages.append(Passage(f"asked-{number}", text, tuple(numbered)))
    return [passage for passage in passages if passage.questions]
