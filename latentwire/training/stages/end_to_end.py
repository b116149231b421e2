"""Stage 3: encoder, generators, heads and LoRA on answers, receivers in turn, from one and the same Z."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from latentwire.config.schema import Config
from latentwire.encoder.text import SenderText
from latentwire.model.encoding import QuestionBlock, ReceiverText
from latentwire.model.receiver import LATENT
from latentwire.model.system import LatentWire
from latentwire.training.dropout import keep_latents
from latentwire.training.module import ParameterGroup, StepOutput, progress_of, shuffled, sum_terms

Prepared = tuple[SenderText, dict[str, ReceiverText]]


class Batch(NamedTuple):
    """Who reads which passages, the questions on them, and, with latent dropout, which latents of each are kept."""

    receiver: str
    chosen: list[int]
    block: QuestionBlock
    kept: list[list[int]] | None


class EndToEnd:
    """Train module: cross-entropy on answers; micro-batch i is read by receiver i mod K.

    Each round of K micro-batches shows every receiver the same passages. What is frozen of the sender is computed once
    for each passage and kept (bf16) when `system.cache_features` is on.
    """

    name = "end_to_end"

    def __init__(self, system: LatentWire, passages: Sequence[Prepared], config: Config):
        self.system = system
        self.passages = passages
        self.config = config
        self.names = list(system.receivers)
        most = config.data.questions_per_passage
        self.lengths = [sum(t.cost(most) - len(t.ids) for t in texts.values()) for _, texts in passages]
        self.steps_per_epoch = max(1, len(passages) // config.optimizer.batch_size) * len(self.names)
        self.total = 0
        self._features: dict[int, Tensor] = {}

    def parameter_groups(self) -> list[ParameterGroup]:
        rates, sender = self.config.optimizer, self.system.sender
        encoder_rate = rates.lr_sender if sender.encoder.from_scratch else rates.lr_encoder
        groups = [
            ParameterGroup(part, list(module.parameters()), encoder_rate if part == "encoder" else rates.lr_sender)
            for part, module in sender.parts.items()
        ]
        for name, receiver in self.system.receivers.items():
            generator = list(receiver.reader.generator.parameters())
            groups.append(ParameterGroup(f"generator/{name}", generator, rates.lr_generator))
            groups.append(ParameterGroup(f"head/{name}", [receiver.reader.head], rates.lr))  # type: ignore[list-item]
            for feature, module in receiver.features.items():
                groups.append(ParameterGroup(f"{feature}/{name}", list(module.trainable_parameters()), rates.lr))
            if LATENT in receiver.adapters:
                lora = list(receiver.adapters[LATENT].trainable_parameters())
                groups.append(ParameterGroup(f"lora/{name}", lora, rates.lr))
        return groups

    def batch(self, index: int) -> Batch:
        round_, turn = divmod(index, len(self.names))
        chosen, rng = shuffled(self.lengths, self.config.optimizer.batch_size, round_, self.config.system.seed)
        name = self.names[turn]
        receiver = self.system.receivers[name]
        texts = [self.passages[i][1][name] for i in chosen]
        block = receiver.pack(texts, rng)
        kept = None
        if self.config.latents.drops:
            progress = progress_of(index, self.total)
            kept = [keep_latents(text.latents, progress, self.config.latents, rng) for text in texts]
        return Batch(name, chosen, block, kept)

    def features(self, chosen: Sequence[int]) -> list[Tensor]:
        """The encoder's features of passages, from memory where they are known."""
        missing = [i for i in chosen if i not in self._features]
        # One text at a time: what is kept must not depend on its company in a batch, or a resumed run would differ.
        found = {i: self.system.sender.features([self.passages[i][0]])[0] for i in missing}
        if self.config.system.cache_features:
            # Kept in 16 bits, and used so from the first time on: a resumed run sees the same numbers.
            found = {i: f.to(torch.bfloat16) if f.is_floating_point() else f for i, f in found.items()}
            self._features |= found
        return [self._features.get(i, found.get(i)) for i in chosen]  # type: ignore[misc]

    def forward(self, batch: Batch) -> StepOutput:
        name, chosen, block, kept = batch
        receiver = self.system.receivers[name]
        z, counts = self.system.sender.latents(self.features(chosen), [self.passages[i][0].latents for i in chosen])
        with receiver.using(LATENT):
            context = receiver.read_latents(z.to(receiver.lm.device), counts.to(receiver.lm.device), kept)
            terms, metrics = receiver.loss(context, block)
        for feature, module in receiver.features.items():
            term = module.loss(receiver.lm, context, [self.passages[i][1][name].ids for i in chosen])
            if term is not None:
                terms[feature], metrics[feature] = term, term.item()
        return StepOutput(sum_terms(terms), int(block.mask.sum()), name, metrics, terms)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {
            stem: t for stem, t in self.system.state_dict(training=True).items() if not stem.startswith("baselines/")
        }

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.system.load_state_dict(state)
