"""Stage 1, and the tuned baselines: LoRA on a receiver alone, before there is any wire.

The receiver learns to answer from a context in the form in which it will read it:

    latent        its own slots (or window embeddings) of the text: what the wire will have to give it
    text          the whole text: the tuned text baseline
    token_budget  the text cut to as many positions as the latents take
    llmlingua     as many of its tokens, selected by that method (only where evaluation.rivals asks for it)
    asking        the whole text, to ask a question for an answer (`training.questioner`)

LoRA, data, batches and rates are the same for all; the number of steps is set apart for the baselines
(`curriculum.baselines`) and is written into diagnostics.jsonl. What section `losses` adds is for latents only. Only the
sender's tokenizer is needed, and its model where it chooses tokens (`encoder.keep`).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from latentwire.config.schema import Config
from latentwire.core.names import LATENT, LLMLINGUA, TOKEN_BUDGET
from latentwire.features.lora import LoRA
from latentwire.model.encoding import QuestionBlock, ReceiverText
from latentwire.model.receiver import Receiver
from latentwire.training.module import ParameterGroup, StepOutput, epoch_batches, progress_of, shuffled


class Batch(NamedTuple):
    """Texts, questions on them, and how far through the stage they come (0 to 1)."""

    texts: list[ReceiverText]
    block: QuestionBlock
    progress: float


class SlotTuning:
    """Train module: one receiver's LoRA, reading in one of these forms."""

    def __init__(self, receiver: Receiver, texts: Sequence[ReceiverText], config: Config, reads: str = LATENT):
        self.name = tuning_name(receiver, reads)
        self.receiver = receiver
        self.texts = texts
        self.config = config
        self.reads = reads
        self.lora = begin_adapter(receiver, reads, config.system.seed)
        self.lengths = [t.cost(config.data.questions_per_passage) for t in texts]
        self.batches_per_epoch = epoch_batches(texts, config.optimizer.batch_size)
        self.total_batches = 0

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("lora", list(self.lora.trainable_parameters()), self.config.optimizer.lr_tuning)]

    def batch(self, index: int) -> Batch:
        seed = f"{self.reads}-{self.config.system.seed}"
        chosen, rng = shuffled(self.lengths, self.config.optimizer.batch_size, index, seed)
        texts = [self.texts[i] for i in chosen]
        block = self.receiver.pack(texts, rng, copying=self.reads == LATENT)
        return Batch(texts, block, progress_of(index, self.total_batches))

    def forward(self, batch: Batch) -> StepOutput:
        texts, block, progress = batch
        with self.lora.active():
            if self.reads == LATENT:
                tokens = sum(len(t.ids) for t in texts)
                teacher = self.receiver.teach(texts, block, progress)
                terms = self.receiver.loss(self.receiver.read_own(texts), block, progress, teacher)
            else:
                rows = [self.row(text) for text in texts]
                tokens = sum(map(len, rows))
                terms = self.receiver.loss(self.receiver.read_text(rows), block)
        tokens += int(block.mask.sum())
        return StepOutput(terms.total, tokens, self.receiver.name, terms.metrics, terms.weighted)

    def size(self, batch: Batch) -> tuple[str, int]:
        return self.receiver.name, batch.block.answer_tokens

    def row(self, text: ReceiverText) -> list[int]:
        """What a baseline reads of a text: token ids, head first."""
        if self.reads == LLMLINGUA:
            from latentwire.rivals.llmlingua import select  # an optional package

            return select(self.receiver, text)
        return text.truncated(self.receiver.extra_positions) if self.reads == TOKEN_BUDGET else text.ids

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"lora": self.lora.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.lora.load_state_dict(state["lora"])


def begin_adapter(receiver: Receiver, reads: str, seed: int) -> LoRA:
    """A receiver's LoRA for such contexts; a fresh one does not depend on what ran before in this process."""
    if reads not in receiver.adapters:
        torch.manual_seed(zlib.crc32(f"{seed}/{receiver.lm.name}/{reads}".encode()))
    return receiver.add_adapter(reads)


def tuning_name(receiver: Receiver, reads: str) -> str:
    """The name of a receiver's tuning, in logs and folders."""
    return f"slot_tuning/{receiver.name}" if reads == LATENT else f"baseline/{receiver.name}/{reads}"
