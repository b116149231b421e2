"""What a model reads in place of a text, and what it makes of it: the receiver without its messages."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from latentwire.backbone.context import Context
from latentwire.backbone.lm import LanguageModel
from latentwire.backbone.padding import pad_left, pad_right, row_mask
from latentwire.backbone.recompute import recompute_blocks
from latentwire.config.schema import Config
from latentwire.core.errors import ConfigError, ModelError
from latentwire.core.names import TEXT
from latentwire.data.prompts import PromptFormat
from latentwire.diagnostics.tensors import hand_over
from latentwire.encoder.text import stack_phases
from latentwire.features import build_features
from latentwire.features.lora import LoRA
from latentwire.features.lora.feature import base_model, keep_active
from latentwire.losses.schedule import tokens_at
from latentwire.losses.terms import Terms
from latentwire.model.consensus import Candidate, consensus
from latentwire.model.encoding import (
    QuestionBlock,
    ReceiverText,
    choose_questions,
    copy_spans,
    pack_questions,
)
from latentwire.model.generation import Generation, RowWatch
from latentwire.model.objective import Predictions, answer_terms, early_terms, reader_terms
from latentwire.reader.build import build_reader


@dataclass
class AnswerScores:
    """Teacher-forced scores of answers, each (batch,), one entry an answer."""

    nll: Tensor  # summed over the answer's tokens, nats
    tokens: Tensor
    first_correct: Tensor
    all_correct: Tensor  # whether each token was the most likely one behind those before it


class ContextReader:
    """Reads contexts (text, its own slots, or latents), trains on what comes behind them, scores and generates it.

    `adapters` maps an adapter name to its LoRA; without LoRA it is empty and the receiver is the untouched model.
    `features` maps the reading features that are on to themselves; they work where latents are read, nowhere else.
    `own` holds the indices of a message's latents that are for this receiver, None where all are.
    """

    def __init__(self, name: str, lm: LanguageModel, config: Config):
        self.name = name
        self.lm = lm
        self.config = config
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
        """What features do while the model goes on from a context, such as attention to its latents."""
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

    @cached_property
    def passage_anchor(self) -> list[int]:
        """Token ids of evaluation.anchor_text, which stand in front of a passage in mode embedding_anchor."""
        return self.prompt.opening(self.config.evaluation.anchor_text)

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
        context.latents, context.latent_mask = z, row_mask(counts, z.shape[1])
        for feature in self.features.values():
            context = feature.extend(self.lm, context)
        context.generated = values
        return context

    @property
    def extra_positions(self) -> int:
        """Positions that the features add to those of head, latents and question."""
        return sum(feature.positions for feature in self.features.values())

    # ---- what comes behind a context --------------------------------------------------------------------------------

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
        """Score one answer, given as (tail, answer) token ids, for each row of a context, whose cache is used up."""
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

    def generate(
        self,
        context: Context,
        tails: Sequence[list[int]],
        max_new_tokens: int,
        watch: RowWatch | None = None,
        candidates: int = 1,
    ) -> list[str]:
        """Answers, one for each row of a context, greedy or each the consensus of several candidates (`consensus`).

        watch: sees greedy answers grow. The context's cache is used up.
        """
        if candidates > 1:
            return [consensus(found) for found in self.candidates(context, tails, max_new_tokens, candidates)]
        return self._generation.greedy(context, tails, max_new_tokens, watch)

    def candidates(
        self, context: Context, tails: Sequence[list[int]], max_new_tokens: int, count: int
    ) -> list[list[Candidate]]:
        """See `Generation.candidates`."""
        return self._generation.candidates(context, tails, max_new_tokens, count)

    @property
    def _generation(self) -> Generation:
        return Generation(self.lm, self.prompt, self.reading)
