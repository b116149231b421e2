"""A receiver: a frozen causal LM, its reader, and the adapters that it may carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from latentwire.backbone.context import Context
from latentwire.backbone.lm import LanguageModel
from latentwire.config.schema import Config
from latentwire.core.errors import ConfigError, DataError, WireError
from latentwire.core.names import LATENT, TEXT
from latentwire.model.contexts import ContextReader
from latentwire.reader.adapter import EmbeddingReader
from latentwire.wire.message import Wire

Message = Wire | Sequence[Wire]
"""The message of a text, or all messages of a longer text, in order."""
Source = Literal["latents", "text"]
Watch = Callable[[int, int, str], bool]
"""Sees answers grow: number of the message, of its question, and the answer so far; True where no more is needed."""


@dataclass(frozen=True)
class Reply:
    """An answer, and what the receiver read for it. `note` says why that is the text and not the latents."""

    text: str
    source: Source
    note: str | None = None


class Receiver(ContextReader):
    """Answers questions on the text behind a message.

    `sender` is the fingerprint of the sender whose latents it was trained to read, None where that is not known.
    """

    def __init__(self, name: str, lm: LanguageModel, config: Config):
        super().__init__(name, lm, config)
        self.sender: bytes | None = None

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path, name: str, changes: Mapping[str, Any] | None = None) -> Receiver:
        """One receiver of a checkpoint, without its sender and the other receivers.

        checkpoint: a folder, a run's folder (its last checkpoint), or a repository on the Hub: "org/name" or
        "org/name@revision", of which only this receiver's files are fetched, once.
        name: that of the receiver, or a beginning of it that no other one has.
        changes: dotted keys of the configuration with other values, such as {"system.device": "cpu"}.
        """
        from latentwire.model.pretrained import load_receiver

        return load_receiver(checkpoint, name, changes)

    def answer(self, message: Message, question: str, max_new_tokens: int = 24, candidates: int = 1) -> Reply:
        """The answer to one question on the text behind a message; see `answer_batch`."""
        return self.answer_batch([message], [[question]], max_new_tokens, candidates=candidates)[0][0]

    @torch.no_grad()
    def answer_batch(
        self,
        messages: Sequence[Message],
        questions: Sequence[Sequence[str]],
        max_new_tokens: int = 24,
        watch: Watch | None = None,
        candidates: int = 1,
    ) -> list[list[Reply]]:
        """Answers to each question of the list questions[i] on the text behind messages[i], which is read once.

        candidates: 1 for greedy answers; of more, which differ in their first token, the one closest to all is taken
        (`latentwire.model.consensus`).

        Where the latents are not for this reader, it reads the text that the message carries, and says so in the
        reply; WireError where it carries none. `watch` sees greedy answers grow and may end them. DataError unless
        there is one list of questions for each message.
        """
        if len(questions) != len(messages) or any(isinstance(own, str) for own in questions):
            raise DataError(f"questions: one list of questions is needed for each of the {len(messages)} messages")
        parts = [[message] if isinstance(message, Wire) else list(message) for message in messages]
        notes = [self.why_text(wires) for wires in parts]
        replies: list[list[Reply]] = [[] for _ in parts]
        asked = [i for i in range(len(parts)) if questions[i]]
        runs: list[tuple[Source, list[int]]] = [("latents", [i for i in asked if notes[i] is None])]
        # Texts one by one: attention takes the square of a length in memory, for each row of a batch.
        runs += [("text", [i]) for i in asked if notes[i] is not None]
        for source, chosen in runs:
            if not chosen:
                continue
            tails = [[self.prompt.tail(question) for question in questions[i]] for i in chosen]
            flat = [tail for own in tails for tail in own]
            rows = [(i, j) for i, own in zip(chosen, tails, strict=True) for j in range(len(own))]
            with self.using(LATENT if source == "latents" else TEXT):
                longest = [max(map(len, own)) for own in tails]
                context = self.read_messages([parts[i] for i in chosen], source, longest)
                context = context.repeat([len(own) for own in tails])
                answers = iter(self.generate(context, flat, max_new_tokens, _by_row(watch, rows), candidates))
            for i, own in zip(chosen, tails, strict=True):
                replies[i] = [Reply(next(answers), source, notes[i]) for _ in own]
        return replies

    def why_text(self, wires: Sequence[Wire]) -> str | None:
        """Why the latents of a message cannot be read here, None where they can; WireError if it has no text either.

        ModelError where there are more of them than the model's window holds.
        """
        reason = None if wires else "there is no message"
        for wire in wires:
            reason = reason or wire.misfit(self.sender, self.config.encoder.d_z, self.layout.total)
        if reason is None:
            # Before anything is decoded, since latents of a learned codec take far more memory than its bytes.
            self.check_length(len(self.prompt.head) + self._latents_read(wires))
            try:
                _ = [wire.latents for wire in wires]
            except WireError as error:  # they need a codebook that is not known here
                reason = str(error)
        if reason is not None and not (wires and all(wire.text for wire in wires)):
            raise WireError(f"receiver {self.name!r}: {reason}, and carries no text")
        return reason

    def check(self, wires: Sequence[Wire], questions: Sequence[str]) -> int:
        """The tokens of a message's text if that is what would be read for some questions, else 0; it computes nothing.

        WireError where `answer_batch` would have nothing to read, ModelError where it would not fit the model's window.
        """
        tail = max((len(self.prompt.tail(question)) for question in questions), default=0)
        if self.why_text(wires) is None:
            self.check_length(len(self.prompt.head) + self.message_positions(wires) + tail)
            return 0
        row = self._text_row(wires)
        self.check_length(len(row) + tail)
        return len(row) - len(self.prompt.head)

    def message_positions(self, wires: Sequence[Wire]) -> int:
        """Positions that are taken by a message's latents and by what the features add to them."""
        return self._latents_read(wires) + self.extra_positions

    def _latents_read(self, wires: Sequence[Wire]) -> int:
        return sum(self.layout.read_of(wire.latent_count) for wire in wires)

    def read_message(self, message: Message, source: Source = "latents", tail: int = 0) -> Context:
        """Read one message, from its latents or its text; ModelError where that and `tail` tokens do not fit."""
        return self.read_messages([[message] if isinstance(message, Wire) else message], source, [tail])

    @torch.no_grad()
    def input_embeds(self, message: Message, question: str) -> Tensor:
        """A question on a message as vectors at the model's input (positions, hidden_size), for an engine that takes
        them; ConfigError where that is not all that is read, WireError where the latents cannot be read."""
        if not isinstance(self.reader, EmbeddingReader):
            raise ConfigError("features.use_deep_prefix is on: this receiver reads slots, not vectors at its input")
        for name, feature in self.features.items():
            if not feature.train_only:
                raise ConfigError(f"feature {name!r} is on: it adds what vectors at the input do not hold")
        wires = [message] if isinstance(message, Wire) else list(message)
        if reason := self.why_text(wires):
            raise WireError(f"receiver {self.name!r}: {reason}")
        z = torch.cat(self._latents(wires))[None].to(self.lm.device)
        counts = torch.tensor([z.shape[1]], device=self.lm.device)
        read = self.reader.embeds(self.reader.generate(z, counts), counts)[0]
        tail = torch.tensor([self.prompt.tail(question)], device=self.lm.device)
        return torch.cat([read.to(self.lm.dtype), self.lm.embed(tail)], 1)[0]

    def _text_row(self, wires: Sequence[Wire], opening: Sequence[int] = ()) -> list[int]:
        parts = [part for wire in wires for part in (wire.text or "", "" if wire.frame.more else "\n")]
        text = "".join(parts[:-1])  # texts that are read as one do not run into each other
        return [*self.prompt.head, *opening, *self.lm.tokenize_with_offsets(text)[0]]

    def _latents(self, wires: Sequence[Wire]) -> list[Tensor]:
        own = slice(None) if self.own is None else self.own
        return [torch.as_tensor(wire.latents)[own] for wire in wires]

    def read_messages(
        self,
        messages: Sequence[Sequence[Wire]],
        source: Source,
        tails: Sequence[int],
        opening: Sequence[int] = (),
    ) -> Context:
        """Read messages of one or more parts each, from their latents or their text, each before so many tokens.

        opening: token ids that stand between the head and every message, as text does that comes before a passage.
        ModelError where a message does not fit.
        """
        if source == "text":
            rows = [self._text_row(wires, opening) for wires in messages]
            self.check_length(max(len(row) + tail for row, tail in zip(rows, tails, strict=True)))
            return self.read_text(rows)
        latents = [torch.cat(self._latents(wires)) for wires in messages]
        most = max(len(z) + tail for z, tail in zip(latents, tails, strict=True))
        self.check_length(len(self.prompt.head) + len(opening) + most + self.extra_positions)
        counts = torch.tensor([len(z) for z in latents], device=self.lm.device)
        return self._read(pad_sequence(latents, batch_first=True).to(self.lm.device), counts, opening)


def _by_row(watch: Watch | None, rows: Sequence[tuple[int, int]]) -> Callable[[int, str], bool] | None:
    return None if watch is None else lambda row, text: watch(*rows[row], text)
