"""One text and what is asked about it: encoded once, read once by each receiver, answered as often as asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from latentwire.backbone.context import Context
from latentwire.core.errors import DataError
from latentwire.core.names import LATENT, TEXT
from latentwire.diagnostics.timing import timed
from latentwire.model.receiver import Receiver, Source
from latentwire.model.system import LatentWire
from latentwire.wire.message import Wire


@dataclass(frozen=True)
class Answered:
    """An answer, what was read for it, and what it cost.

    positions: all that the receiver was given, question included. Seconds: read_s to read message or text, which is
    done once for all questions; from there, first_token_s to the answer's first token and answer_s to its last one.
    """

    receiver: str
    source: Source
    answer: str
    positions: int
    read_s: float
    first_token_s: float
    answer_s: float


class Conversation:
    """Questions on one text, to the receivers of a system.

    `messages` holds what a receiver may read in its place: the messages with its latents, as they come out of their
    bytes, and one that carries the text itself. `bytes` are those of the former and of the text as UTF-8.
    """

    def __init__(self, system: LatentWire, text: str):
        started = time.perf_counter()
        data = [wire.to_bytes() for wire in system.sender.encode_stream([text])]
        self.encode_s = time.perf_counter() - started
        if not data:
            raise DataError("no text in it")
        self.receivers = system.receivers
        self.messages: dict[Source, list[Wire]] = {
            "latents": [Wire.from_bytes(message) for message in data],
            "text": [Wire.of(text=text)],
        }
        self.bytes: dict[Source, int] = {"latents": sum(map(len, data)), "text": len(text.encode())}
        self._contexts: dict[tuple[str, Source], tuple[Context, float]] = {}

    @property
    def latents(self) -> int:
        """Latents of the text, in all its messages."""
        return sum(wire.latent_count for wire in self.messages["latents"])

    @torch.no_grad()
    def answer(
        self,
        name: str,
        question: str,
        source: Source = "latents",
        max_new_tokens: int = 24,
        told: Callable[[str], None] | None = None,
    ) -> Answered:
        """A receiver's greedy answer. `told` is called with the answer so far at every token of it.

        The text is read with the LoRA that was tuned on text, where the receiver has one. ModelError where what is to
        be read is longer than the model's window.
        """
        receiver = self.receivers[name]
        tail = receiver.prompt.tail(question)
        heard_at: list[float] = []

        def watch(row: int, so_far: str) -> bool:
            heard_at.append(time.perf_counter())
            if told is not None:
                told(so_far)
            return False

        with receiver.using(LATENT if source == "latents" else TEXT):
            context, read_s = self._context(receiver, source, len(tail))
            positions = int(context.mask.sum()) + len(tail)
            receiver.check_length(positions)
            started = time.perf_counter()
            (answer,) = receiver.generate(context.repeat([1]), [tail], max_new_tokens, watch)
            ended = time.perf_counter()
        return Answered(name, source, answer, positions, read_s, heard_at[0] - started, ended - started)

    def _context(self, receiver: Receiver, source: Source, tail: int) -> tuple[Context, float]:
        """What a receiver has read, and the seconds that it took when it was read."""
        key = (receiver.name, source)
        if key not in self._contexts:
            self._contexts[key] = timed(partial(receiver.read_message, self.messages[source], source, tail))
        return self._contexts[key]
