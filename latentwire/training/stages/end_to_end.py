"""Stage 3: encoder, generators, heads and LoRA on answers, receivers in turn, from one and the same Z."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from latentwire.config.schema import Config
from latentwire.core.names import BASELINES, LATENT
from latentwire.encoder.text import SenderText
from latentwire.features.lora import LoRA
from latentwire.losses.terms import Terms
from latentwire.model.encoding import Prepared, QuestionBlock, ReceiverText
from latentwire.model.receiver import Receiver
from latentwire.model.system import LatentWire
from latentwire.training.dropout import keep_latents
from latentwire.training.module import ParameterGroup, StepOutput, epoch_batches, progress_of, shuffled
from latentwire.training.processes import Processes


class Batch(NamedTuple):
    """Who reads which passages, the questions on them, whether the text itself is read, how far through the stage this
    comes (0 to 1), with latent dropout which latents of each passage are kept, and the number of the round."""

    receiver: str
    chosen: list[int]
    block: QuestionBlock
    from_text: bool
    progress: float
    kept: list[list[int]] | None
    round: int


def one_after_another(z: Tensor, uses: int) -> list[Tensor]:
    """`uses` stand-ins for a tensor, each to be differentiated before the next one is used: their gradients add up and
    go back through what made it only once, with the last one's."""
    if not z.requires_grad:
        return [z] * uses
    earlier = z.detach().requires_grad_()
    z.register_hook(lambda last: last if earlier.grad is None else last + earlier.grad)
    return [earlier] * (uses - 1) + [z]


class EndToEnd:
    """Train module: cross-entropy on answers; micro-batch i is read by receiver i mod K.

    Each round of K micro-batches shows every receiver the same passages; in some rounds (`reads_text`) as text instead
    of latents, for LoRA to learn the task. What is frozen of the sender is computed once for each passage and kept
    (bf16) when `system.cache_features` is on: its features, or, with `curriculum.train_only`, the latents themselves.
    What is trained of it runs once a round where whole rounds fall in one step (`optimizer.accumulation`).
    """

    name = "end_to_end"

    def __init__(self, system: LatentWire, passages: Sequence[Prepared], config: Config):
        self.system = system
        self.passages = passages
        self.config = config
        self.names = list(system.receivers)
        self.sender_fixed = config.curriculum.train_only is not None
        most = config.data.questions_per_passage
        self.lengths = [sum(t.cost(most) - len(t.ids) for t in texts.values()) for _, texts in passages]
        self.batches_per_epoch = epoch_batches(passages, config.optimizer.batch_size) * len(self.names)
        self.total_batches = 0
        self._features: dict[int, Tensor] = {}
        mine, turns = Processes().share(config.optimizer.accumulation), len(self.names)
        one_step = turns > 1 and mine.start % turns == 0 and len(mine) % turns == 0
        # Norms are taken of each micro-batch's own gradient.
        self.encodes_once = one_step and not self.sender_fixed and not config.diagnostics.grad_norms_every
        self._round: tuple[int, list[tuple[Tensor, Tensor]]] = (-1, [])

    def parameter_groups(self) -> list[ParameterGroup]:
        rates, sender = self.config.optimizer, self.system.sender
        encoder_rate = rates.lr_sender if sender.encoder.from_scratch else rates.lr_encoder
        groups = [
            ParameterGroup(
                "sender_lora" if isinstance(part, LoRA) else name,
                list(part.trainable_parameters() if isinstance(part, LoRA) else part.parameters()),
                encoder_rate if name == "encoder" else rates.lr_sender,
            )
            for name, part in sender.parts.items()
            if not self.sender_fixed
        ]
        for name, receiver in self.system.receivers.items():
            generator = receiver.reader.generator
            mlp = [] if generator.mlp is None else list(generator.mlp.parameters())
            rest = [p for n, p in generator.named_parameters() if not n.startswith("mlp.")]
            groups.append(ParameterGroup(f"generator/{name}", rest, rates.lr_generator))
            groups.append(ParameterGroup(f"generator_mlp/{name}", mlp, rates.lr_generator_mlp))
            groups.append(ParameterGroup(f"head/{name}", [receiver.reader.head], rates.lr))  # type: ignore[list-item]
            gain = [p for n, p in receiver.reader.named_parameters() if n == "gain"]
            groups.append(ParameterGroup(f"gain/{name}", gain, rates.lr))
            for feature, module in receiver.features.items():
                groups.append(ParameterGroup(f"{feature}/{name}", list(module.trainable_parameters()), rates.lr))
            if LATENT in receiver.adapters:
                lora = list(receiver.adapters[LATENT].trainable_parameters())
                groups.append(ParameterGroup(f"lora/{name}", lora, rates.lr))
        return groups

    def batch(self, index: int) -> Batch:
        round_, turn = divmod(index, len(self.names))
        chosen, rng = self._shuffled(round_)
        name, from_text, progress = self.names[turn], self.reads_text(index), self.progress(index)
        texts = [self.passages[i][1][name] for i in chosen]
        block = self.system.receivers[name].pack(texts, rng, copying=not from_text)
        kept = None
        if self.config.latents.drops:
            kept = [keep_latents(text.latents, progress, self.config.latents, rng) for text in texts]
        return Batch(name, chosen, block, from_text, progress, kept, round_)

    def size(self, batch: Batch) -> tuple[str, int]:
        return batch.receiver, batch.block.answer_tokens

    def progress(self, index: int) -> float:
        """How far through its schedules a micro-batch is, from 0 to 1."""
        return progress_of(index, self.total_batches)

    def reads_text(self, index: int) -> bool:
        """Whether a micro-batch is read as text: every second round of the warm-up, then rounds drawn by chance; none
        without LoRA, which alone learns from it.

        A function of the round alone, so that a resumed run draws the same and all receivers read alike.
        """
        if not self.config.features.use_lora:
            return False
        stage, round_ = self.config.curriculum.end_to_end, index // len(self.names)
        if round_ * len(self.names) // self.config.optimizer.accumulation < stage.warmup_text_steps:
            return round_ % 2 == 0
        return random.Random(f"text-{self.config.system.seed}-{round_}").random() < stage.tail_text_prob

    def latents(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Latents of a batch's passages (batch, M, d_z), and counts (batch,)."""
        if not self.encodes_once:
            return self._encode(batch)
        round_, turns = self._round
        if round_ != batch.round or not turns:
            z, counts = self._encode(batch)
            turns = [(one, counts) for one in one_after_another(z, len(self.names))]
            self._round = batch.round, turns
        return turns.pop(0)

    def _encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        sender, known = self.system.sender, self.features(batch.chosen)
        made = [self.passages[i][0].latents for i in batch.chosen]
        if not self.sender_fixed:
            # Dropout is the round's own: the same whether receivers share one encoding or not.
            with torch.random.fork_rng([sender.device] if sender.device.type == "cuda" else []):
                torch.manual_seed(zlib.crc32(f"encode-{self.config.system.seed}-{batch.round}".encode()))
                return sender.latents(known, made)
        return pad_sequence([z.float() for z in known], batch_first=True), torch.tensor(made, device=sender.device)

    def features(self, chosen: Sequence[int]) -> list[Tensor]:
        """The frozen part of the sender on passages, from memory where it is known."""
        keep = self.config.system.cache_features
        known = self._features if keep else {}
        for i in chosen:
            if i not in known:
                together = self._company.get(i, [i]) if keep else chosen
                found = dict(zip(together, self._frozen_part([self.passages[j][0] for j in together]), strict=True))
                if keep:
                    # In 16 bits, and used so from the first time on: a resumed run sees the same numbers. On the CPU:
                    # those of a large data set would fill a GPU.
                    found = {j: f.to(torch.bfloat16) if f.is_floating_point() else f for j, f in found.items()}
                known |= {j: f.cpu() for j, f in found.items()}
        return [known[i].to(self.system.sender.device) for i in chosen]

    @cached_property
    def _company(self) -> dict[int, list[int]]:
        """Those that a fixed sender reads together with a passage, for all passages that are not read alone.

        It is their batch of the first epoch, whenever they are read: what is kept depends a little on the padding, and
        must not on where a run was resumed.
        """
        if not self.sender_fixed:
            return {}
        rounds = range(self.batches_per_epoch // len(self.names))
        return {i: batch for round_ in rounds for batch in [self._shuffled(round_)[0]] for i in batch}

    def _shuffled(self, round_: int) -> tuple[list[int], random.Random]:
        seed = f"{self.name}-{self.config.system.seed}"  # the next stage shall not begin with the same passages
        return shuffled(self.lengths, self.config.optimizer.batch_size, round_, seed)

    @torch.no_grad()
    def _frozen_part(self, texts: Sequence[SenderText]) -> list[Tensor]:
        sender = self.system.sender
        if not self.sender_fixed:
            return [sender.features([text])[0] for text in texts]
        sender.encoder.choose_ahead(texts)
        z, counts = sender.latents_of(texts)
        return [row[:count] for row, count in zip(z, counts.tolist(), strict=True)]

    def forward(self, batch: Batch) -> StepOutput:
        receiver = self.system.receivers[batch.receiver]
        texts = [self.passages[i][1][batch.receiver] for i in batch.chosen]
        with receiver.using(LATENT):
            if batch.from_text:
                return self._from_text(receiver, texts, batch)
            terms = self._from_latents(receiver, texts, batch)
        return StepOutput(terms.total, int(batch.block.mask.sum()), receiver.name, terms.metrics, terms.weighted)

    def _from_latents(self, receiver: Receiver, texts: list[ReceiverText], batch: Batch) -> Terms:
        z, counts = self.latents(batch)
        z = self.sent(z, batch)
        teacher = receiver.teach(texts, batch.block, batch.progress)
        context = receiver.read_latents(z.to(receiver.lm.device), counts.to(receiver.lm.device), batch.kept)
        terms = receiver.loss(context, batch.block, batch.progress, teacher)
        terms.extend(receiver.reader_loss(context, batch.block))
        for name, feature in receiver.features.items():
            term = feature.loss(receiver.lm, context, [text.ids[text.head_len :] for text in texts])
            if term is not None:
                terms.add(name, term, feature.weight)
        return terms

    def sent(self, z: Tensor, batch: Batch) -> Tensor:
        """What arrives of latents (batch, M, d_z)."""
        return z

    def _from_text(self, receiver: Receiver, texts: list[ReceiverText], batch: Batch) -> StepOutput:
        """Logged as another reader than the receiver, because the two losses do not compare."""
        rows = [text.ids for text in texts]
        terms = receiver.loss(receiver.read_text(rows), batch.block)
        tokens = sum(map(len, rows)) + int(batch.block.mask.sum())
        return StepOutput(terms.total, tokens, f"{receiver.name}:text", terms.metrics, terms.weighted)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        state = self.system.state_dict(training=True)
        return {stem: group for stem, group in state.items() if not stem.startswith(BASELINES)}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.system.load_state_dict(state)
