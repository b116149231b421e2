"""The ends of a wire in one process: what is loaded, and how batches of work are done with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from latentwire.checkpoint.index import find_checkpoint, load_config_of
from latentwire.config import some_receivers
from latentwire.core.errors import ConfigError, LatentWireError
from latentwire.model.pretrained import load_receivers
from latentwire.model.receiver import Receiver, Reply
from latentwire.model.sender import Sender
from latentwire.serving.batching import Batcher
from latentwire.serving.metrics import Metrics
from latentwire.wire.message import Wire

Role = Literal["sender", "receiver", "both"]


class TooLarge(LatentWireError):
    """A request is above one of the service's limits."""


@dataclass(frozen=True)
class Limits:
    """What one service takes on."""

    queue: int = 64
    """Requests accepted and not answered yet."""
    batch: int = 8
    """Texts or questions done together, and the most questions of a request."""
    seconds: float = 60
    """Time for one request, its wait included."""
    body: int = 4 << 20
    """Bytes of a request's body: a message of the longest text has 3.9 million in fp16 and base64."""
    text_tokens: int = 8192
    question: int = 1000
    """Characters of a question."""
    new_tokens: int = 64
    messages: int = 256
    """Messages of a text."""


@dataclass
class Ends:
    """What is loaded."""

    sender: Sender | None = None
    receivers: dict[str, Receiver] = field(default_factory=dict)


@dataclass(frozen=True)
class Encode:
    """The task of encoding texts; equal tasks are done together."""

    codec: str | None
    with_text: bool


@dataclass(frozen=True)
class Answer:
    """The task of answering questions on messages."""

    receiver: str
    max_new_tokens: int


@dataclass(eq=False)
class Ask:
    """Questions on the text behind some messages. `seen` gets a question's number and its answer so far after each
    token; once `stopped` is set, nobody waits for them any more."""

    wires: Sequence[Wire]
    questions: Sequence[str]
    seen: Callable[[int, str], None] | None = None
    stopped: bool = False


class Engine:
    """Loads its ends in the background, then encodes and answers, batch after batch."""

    def __init__(self, load: Callable[[], Ends], limits: Limits, role: Role = "both"):
        self.limits = limits
        self.role = role
        self.ends = Ends()
        self.metrics = Metrics()
        self._load = load
        self.batcher = Batcher(self._start, self._work, limits.batch)
        self.metrics.waiting.set_function(lambda: self.batcher.waiting)

    def _start(self) -> None:
        self.ends = self._load()

    @property
    def ready(self) -> bool:
        done = self.batcher.ready
        return done.done() and done.exception() is None

    def encode(self, text: str, task: Encode) -> Future[list[Wire]]:
        return self.batcher.submit(task, text)

    def answer(self, ask: Ask, task: Answer) -> Future[list[Reply]]:
        return self.batcher.submit(task, ask, len(ask.questions))

    def _work(self, task: Encode | Answer, items: list[Any]) -> Sequence[Any]:
        started = time.perf_counter()
        name = "encode" if isinstance(task, Encode) else task.receiver
        refused = {i: error for i, item in enumerate(items) if (error := self._why_not(task, item))}
        fine = [item for i, item in enumerate(items) if i not in refused]
        if not fine:
            return list(refused.values())
        done = iter(self._encode(task, fine) if isinstance(task, Encode) else self._answer(task, fine))
        self.metrics.batch_seconds.labels(name).observe(time.perf_counter() - started)
        self.metrics.batch_rows.labels(name).observe(sum(len(getattr(item, "questions", [0])) for item in fine))
        return [refused[i] if i in refused else next(done) for i in range(len(items))]

    def _why_not(self, task: Encode | Answer, item: Any) -> LatentWireError | None:
        """What keeps one item from being done, found before anything is computed, so that the others never wait for it
        in vain."""
        try:
            if isinstance(task, Encode):
                assert self.ends.sender is not None
                tokens = len(self.ends.sender.encoder.source.tokenize_with_offsets(item)[0])
            elif item.stopped:
                return LatentWireError("the client left")
            else:
                tokens = self.ends.receivers[task.receiver].check(item.wires, item.questions)
        except LatentWireError as error:
            return error
        if tokens > self.limits.text_tokens:
            return TooLarge(f"the text has {tokens} tokens; at most {self.limits.text_tokens} are taken")
        return None

    def _encode(self, task: Encode, texts: list[str]) -> list[list[Wire]]:
        assert self.ends.sender is not None
        return self.ends.sender.encode_long(texts, task.codec, with_text=task.with_text)

    def _answer(self, task: Answer, asks: list[Ask]) -> list[list[Reply]]:
        receiver = self.ends.receivers[task.receiver]

        def watch(number: int, question: int, answer: str) -> bool:
            ask = asks[number]
            if ask.seen is not None and not ask.stopped:
                ask.seen(question, answer)
            return ask.stopped

        replies = receiver.answer_batch(
            [ask.wires for ask in asks], [ask.questions for ask in asks], task.max_new_tokens, watch
        )
        for reply in (reply for own in replies for reply in own):
            self.metrics.answers.labels(task.receiver, reply.source).inc()
        return replies


def ends_of(
    ckpt: str | Path, role: Role, names: Sequence[str] | None = None, changes: Mapping[str, Any] | None = None
) -> Callable[[], Ends]:
    """What loads the ends of a checkpoint for a role, all receivers or the named ones.

    Whatever is wrong with the checkpoint, the names or the changes is raised here, before any model is loaded.
    """
    folder = find_checkpoint(ckpt)
    config = load_config_of(folder, changes)
    if names and role == "sender":
        raise ConfigError("--receiver: does nothing with --role sender, which loads none")
    chosen = [] if role == "sender" else list(some_receivers(config.model.chosen, names or [], f"--receiver: {folder}"))
    return partial(_load, folder, role != "receiver", chosen, changes)


def _load(folder: Path, sends: bool, names: list[str], changes: Mapping[str, Any] | None) -> Ends:
    sender = Sender.from_pretrained(folder, changes) if sends else None
    return Ends(sender, load_receivers(folder, names, changes))
