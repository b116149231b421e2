"""A receiver: a frozen causal LM, its reader, and the adapters that it may carry."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from latentwire.backbone.lm import Context, LanguageModel, pad_left, pad_right
from latentwire.backbone.recompute import recompute_blocks
from latentwire.config.schema import Config
from latentwire.core.errors import ConfigError, ModelError, WireError
from latentwire.data.prompts import PromptFormat
from latentwire.diagnostics.tensors import hand_over
from latentwire.encoder.text import stack_phases
from latentwire.features import build_features
from latentwire.features.lora import LoRA
from latentwire.features.lora.feature import base_model, keep_active
from latentwire.losses.schedule import tokens_at
from latentwire.losses.terms import Terms
from latentwire.model.encoding import (
    QuestionBlock,
    ReceiverText,
    choose_questions,
    copy_spans,
    pack_questions,
)
from latentwire.model.objective import Predictions, answer_terms, early_terms, reader_terms
from latentwire.reader.adapter import EmbeddingReader
from latentwire.reader.base import Reader, real
from latentwire.reader.slots import SlotReader
from latentwire.wire.message import Wire

ADAPTERS = LATENT, TEXT, TOKEN_BUDGET, LLMLINGUA = "latent", "text", "token_budget", "llmlingua"
"""Names of a receiver's LoRA adapters: what it was tuned to read."""
ASKING = "asking"
"""The name of the one that asks about a text instead of answering."""


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


@dataclass
class AnswerScores:
    """Teacher-forced scores of answers, one entry an answer."""

    nll: Tensor  # summed over the answer's tokens, nats
    tokens: Tensor
    first_correct: Tensor
    all_correct: Tensor  # whether each token was the most likely one behind those before it


class Receiver:
    """Reads contexts (text, its own slots, or latents), scores answers and generates them.

    `adapters` maps an adapter name to its LoRA; without LoRA it is empty and the receiver is the untouched model.
    `features` maps the reading features that are on to themselves; they work where latents are read, nowhere else.
    `sender` is the fingerprint of the sender whose latents it was trained to read, None where that is not known.
    `own` holds the indices of a message's latents that are for this receiver, None where all are.
    """

    def __init__(self, name: str, lm: LanguageModel, config: Config):
        self.name = name
        self.lm = lm
        self.config = config
        self.sender: bytes | None = None
        deepest = max(config.losses.state_kd_layers or [0])
        if deepest > lm.anatomy.layers:
            raise ConfigError(f"losses.state_kd_layers: {deepest} is more than the {lm.anatomy.layers} of {lm.name!r}")
        self.prompt = PromptFormat(lm.tokenizer, config.anchor, lm.bos_id)
        self.reader = build_reader(lm, config, len(self.prompt.head), name)
        self.reader.reset_head(lm, self.prompt.head)
        self.reader.to(lm.device)
        self.layout = config.latent_layout
        self.own = self.layout.own(name)
        self.adapters: dict[str, LoRA] = {}
        self.features = build_features(config, lm)
        self._attached = ExitStack()
        for feature in self.features.values():
            self._attached.enter_context(feature.to(lm.device).attach(lm.model))
        if config.system.grad_ckpt:
            self._attached.enter_context(recompute_blocks(lm.model, partial(keep_active, lm.model)))
        weakref.finalize(self, self._attached.close)  # the model outlives its receiver as it was, also at exit

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path, name: str, changes: Mapping[str, Any] | None = None) -> Receiver:
        """One receiver of a checkpoint, without its sender and the other receivers.

        checkpoint: a folder, a run's folder (its last checkpoint), or a repository on the Hub: "org/name" or
        "org/name@revision", of which only this receiver's files are fetched, once.
        changes: dotted keys of the configuration with other values, such as {"system.device": "cpu"}.
        """
        from latentwire.model.pretrained import load_receiver

        return load_receiver(checkpoint, name, changes)

    # ---- adapters -------------------------------------------------------------------------------------------------

    def add_adapter(self, name: str) -> LoRA:
        """Attach a fresh LoRA adapter under a name, switched off; the one there already, if any, is returned."""
        if name not in self.adapters:
            self.lm.take_turn()  # an adapter is made where the weights are, and stays there
            adapter = LoRA(self.config.lora, name)
            self._attached.enter_context(adapter.attach(self.lm.model))
            self.adapters[name] = adapter
        return self.adapters[name]

    @contextmanager
    def using(self, adapter: str | None, dropout: bool = True) -> Iterator[None]:
        """Read with the named adapter if the receiver has it, else with the untouched model (also for None).

        Without dropout adapter and reader do as they do in inference, also where gradients are wanted.
        """
        feature = self.adapters.get(adapter) if adapter else None
        with feature.active(dropout) if feature else base_model(self.lm.model):
            before = self.reader.training
            self.reader.train(before and dropout)
            try:
                yield
            finally:
                self.reader.train(before)

    def close(self) -> None:
        """Take every adapter and feature off again."""
        self._attached.close()
        self.adapters.clear()
        self.features.clear()

    @contextmanager
    def reading(self, context: Context) -> Iterator[None]:
        with ExitStack() as stack:
            for feature in self.features.values():
                stack.enter_context(feature.reading(context))
            yield

    # ---- contexts -------------------------------------------------------------------------------------------------

    def check_length(self, positions: int) -> None:
        """ModelError where so many positions are more than the model's window."""
        limit = self.lm.anatomy.max_positions
        if positions > limit:
            raise ModelError(
                f"receiver {self.name!r}: {positions} tokens of passage and question are longer than the model's "
                f"window of {limit}"
            )

    def read_text(self, rows: Sequence[list[int]], *, as_embeddings: bool = False) -> Context:
        """Read token ids (head first), through `inputs_embeds` if asked: the text path and its replay."""
        self.check_length(max(map(len, rows)))
        ids, mask = pad_left(rows, self.lm.pad_id, self.lm.device)
        if as_embeddings:
            return self.lm.prefill(mask, embeds=self.lm.embed(ids))
        return self.lm.prefill(mask, ids=ids)

    @torch.no_grad()
    def targets(self, texts: Sequence[ReceiverText]) -> tuple[Tensor, Tensor]:
        """What the reader's generator should give for these texts, (batch, M, d_out), and the counts (batch,).

        The untouched model makes it, whatever adapters there are: LoRA learns to read, not to write, and one wire can
        serve the frozen receiver and the tuned one.
        """
        ids, mask = pad_right([t.ids for t in texts], self.lm.pad_id, self.lm.device)
        phase_tokens, counts = stack_phases([t.phase_tokens for t in texts], self.lm.device)
        with base_model(self.lm.model):
            return self.reader.targets(self.lm, ids, mask, phase_tokens), counts

    def read_own(self, texts: Sequence[ReceiverText]) -> Context:
        """Read texts through what the receiver itself makes of them in the reader's form: no sender, no latents."""
        values, counts = self.targets(texts)
        return self.reader.context(self.lm, values, counts)

    def read_latents(self, z: Tensor, counts: Tensor, kept: Sequence[Sequence[int]] | None = None) -> Context:
        """Read messages' latents (batch, M, d_z), of which counts[i] in row i: all, or the shared ones and its own.

        kept: for each row, indices among those that it reads; the others are dropped, in training.
        """
        if self.own is not None:
            z, counts = z[:, self.own], torch.full_like(counts, len(self.own))
        if kept is not None:
            z = pad_sequence([row[list(index)] for row, index in zip(z, kept, strict=True)], batch_first=True)
            counts = torch.tensor([len(index) for index in kept], device=z.device)
        return self._read(z, counts)

    def _read(self, z: Tensor, counts: Tensor, opening: Sequence[int] = ()) -> Context:
        """Read latents that are all for this receiver, behind the head and the token ids of `opening`."""
        values = self.reader.generate(z, counts)
        before = self.reader.opening(self.lm, self.prompt.head, opening) if opening else None
        context = self.reader.context(self.lm, values, counts, before)
        context.latents, context.latent_mask = z, real(z, counts)
        for feature in self.features.values():
            context = feature.extend(self.lm, context)
        context.generated = values
        return context

    @property
    def extra_positions(self) -> int:
        """Positions that the features add to those of head, latents and question."""
        return sum(feature.positions for feature in self.features.values())

    # ---- answers --------------------------------------------------------------------------------------------------

    def pack(self, texts: Sequence[ReceiverText], rng: random.Random, *, copying: bool = True) -> QuestionBlock:
        """Some questions on each text, drawn anew each time, and spans of it to copy where losses.copy_weight asks.

        Without `copying` there are none: a baseline that reads only part of a text must not learn to invent the rest.
        """
        losses = self.config.losses
        rows = [choose_questions(t.questions, self.config.data.questions_per_passage, rng) for t in texts]
        spans = None
        if copying and losses.copy_weight:
            spans = [copy_spans(t, self.prompt, losses.copy_spans, rng) for t in texts]
        return pack_questions(rows, self.lm.pad_id, self.lm.device, spans)

    def loss(
        self,
        context: Context,
        block: QuestionBlock,
        progress: float | None = None,
        teacher: Predictions | None = None,
    ) -> Terms:
        """The training loss of packed questions behind a context, as named terms.

        Without `progress`, the way through the stage from 0 to 1, it is the plain loss that baselines are trained on.
        """
        hand_over("questions", block.ids)
        own = self._predict(context, block, block.labels != -100)
        terms = answer_terms(own, block, self.config.losses)
        if progress is not None:
            terms.extend(early_terms(own, teacher, block, self.config.losses, progress))
        return terms

    def reader_loss(self, context: Context, block: QuestionBlock) -> Terms:
        """The part of the training loss that looks at the latents behind a context and at what the reader made of them;
        no terms where none is asked for."""
        untouched = base_model(self.lm.model) if self.config.losses.align_weight else nullcontext()
        with untouched:
            return reader_terms(self.reader, self.lm, context, block, self.config.losses)

    @torch.no_grad()
    def teach(self, texts: Sequence[ReceiverText], block: QuestionBlock, progress: float) -> Predictions | None:
        """What the receiver predicts of answers' first K tokens when it reads the texts themselves, with the LoRA that
        was tuned on text if it has one; None where no loss asks for a teacher.

        It costs one reading of each text and of the block, and logits at the K tokens only.
        """
        losses = self.config.losses
        if not losses.distils:
            return None
        early = block.early(tokens_at(losses.k_tokens, losses.k_tokens_end, progress))
        with self.using(TEXT):
            return self._predict(self.read_text([t.ids for t in texts]), block, early, bool(losses.kd_weight))

    def _predict(self, context: Context, block: QuestionBlock, where: Tensor, logits: bool = True) -> Predictions:
        """Predictions of the tokens of a block that `where` (batch, Q) marks; the context's cache is used up."""
        losses, before = self.config.losses, where[:, 1:]
        layers = (losses.state_kd_layers or []) if losses.state_kd_weight else []
        with self.reading(context), self.lm.outputs_of(layers) as seen:
            final = self.lm.continue_from(context, block.ids, block.mask, block.segments)[:, :-1][before]
        states = [seen[k].to(before.device)[:, :-1][before] for k in layers] or [final]
        with self.lm.autocast():
            return Predictions(self.lm.logits(final) if logits else None, states)

    @torch.no_grad()
    def score(self, context: Context, questions: Sequence[tuple[list[int], list[int]]]) -> AnswerScores:
        """Score one answer for each row of a context. The context's cache is used up."""
        ids, mask = pad_left([tail + answer for tail, answer in questions], self.lm.pad_id, self.lm.device)
        tokens = torch.tensor([len(answer) for _, answer in questions], device=self.lm.device)
        with self.reading(context):
            hidden = self.lm.continue_from(context, ids, mask)
        longest = int(tokens.max())
        theirs = torch.arange(longest, device=ids.device)[None] >= longest - tokens[:, None]
        with self.lm.autocast():  # of answers alone: logits are as wide as the vocabulary
            logits = self.lm.logits(hidden[:, -longest - 1 : -1][theirs])
        targets = ids[:, -longest:][theirs]
        nll, correct = torch.zeros(theirs.shape, device=ids.device), torch.ones_like(theirs)
        nll[theirs] = F.cross_entropy(logits, targets, reduction="none")
        correct[theirs] = logits.argmax(-1).eq(targets)
        first = correct.gather(1, (longest - tokens)[:, None])[:, 0]
        return AnswerScores(nll.sum(1), tokens, first, correct.all(1))

    def answer(self, message: Message, question: str, max_new_tokens: int = 24) -> Reply:
        """The greedy answer to one question on the text behind a message; see `answer_batch`."""
        return self.answer_batch([message], [[question]], max_new_tokens)[0][0]

    @torch.no_grad()
    def answer_batch(
        self,
        messages: Sequence[Message],
        questions: Sequence[Sequence[str]],
        max_new_tokens: int = 24,
        watch: Watch | None = None,
    ) -> list[list[Reply]]:
        """Greedy answers to questions[i] on the text behind messages[i]; each message is read once.

        Where the latents are not for this reader, it reads the text that the message carries, and says so in the
        reply; WireError where it carries none. `watch` sees the answers grow and may end them.
        """
        parts = [[message] if isinstance(message, Wire) else list(message) for message in messages]
        notes = [self.why_text(wires) for wires in parts]
        replies: list[list[Reply]] = [[] for _ in parts]
        sources: tuple[Source, ...] = ("latents", "text")
        for source in sources:
            chosen = [i for i, note in enumerate(notes) if (note is None) == (source == "latents") and questions[i]]
            tails = [[self.prompt.tail(question) for question in questions[i]] for i in chosen]
            if not chosen:
                continue
            flat = [tail for own in tails for tail in own]
            rows = [(i, j) for i, own in zip(chosen, tails, strict=True) for j in range(len(own))]
            with self.using(LATENT if source == "latents" else TEXT):
                longest = [max(map(len, own)) for own in tails]
                context = self.read_messages([parts[i] for i in chosen], source, longest)
                context = context.repeat([len(own) for own in tails])
                answers = iter(self.generate(context, flat, max_new_tokens, _by_row(watch, rows)))
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
            sections = [wire.frame.latents for wire in wires]
            self.check_length(len(self.prompt.head) + sum(section.count for section in sections if section is not None))
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
        return sum(map(len, self._latents(wires))) + self.extra_positions

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
        text = "".join(wire.text or "" for wire in wires)
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

    def generate(
        self,
        context: Context,
        tails: Sequence[list[int]],
        max_new_tokens: int,
        watch: Callable[[int, str], bool] | None = None,
    ) -> list[str]:
        """Greedy answers, one for each row of a context. The context's cache is used up.

        watch: sees the number of a row and its answer so far after each token; True ends the row.
        """
        ids, mask = pad_left(tails, self.lm.pad_id, self.lm.device)

        def seen(new: Tensor) -> list[bool]:
            assert watch is not None
            # A character may be cut off in its middle: its bytes can be tokens of their own.
            so_far = [self.prompt.read(tokens).rstrip("\ufffd") for tokens in new.tolist()]
            return [watch(row, text) for row, text in enumerate(so_far)]

        with self.reading(context):
            out = self.lm.generate(context, ids, mask, max_new_tokens, self.prompt.stop, watch and seen)
        return [self.prompt.read(row) for row in out.tolist()]


def _by_row(watch: Watch | None, rows: Sequence[tuple[int, int]]) -> Callable[[int, str], bool] | None:
    return None if watch is None else lambda row, text: watch(*rows[row], text)


def build_reader(lm: LanguageModel, config: Config, head_len: int, receiver: str) -> Reader:
    """The reader that the configuration asks for, for a receiver."""
    if not config.features.use_deep_prefix:
        return EmbeddingReader(lm, config.encoder.d_z, head_len, config.adapter)
    return SlotReader.of(lm.anatomy, config, head_len, receiver)


__all__ = [
    "ADAPTERS",
    "ASKING",
    "LATENT",
    "LLMLINGUA",
    "TEXT",
    "TOKEN_BUDGET",
    "AnswerScores",
    "Message",
    "Receiver",
    "Reply",
    "build_reader",
]
