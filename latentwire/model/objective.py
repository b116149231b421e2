"""What training asks of a receiver: the terms of section `losses`, from what it has read and predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from latentwire.backbone.context import Context
from latentwire.backbone.lm import LanguageModel
from latentwire.config.sections.training import LossesConfig
from latentwire.losses.alignment import answer_alignment
from latentwire.losses.distillation import logit_kd, state_kd
from latentwire.losses.first_token import first_token_accuracy, prediction_entropy
from latentwire.losses.manifold import rms_deviation, scale_deviation, statistics_distance
from latentwire.losses.schedule import interpolate, tokens_at
from latentwire.losses.terms import Terms
from latentwire.model.encoding import QuestionBlock
from latentwire.reader.base import Reader


@dataclass
class Predictions:
    """What is predicted at n places of a block: logits (n, vocabulary), where they are needed, and hidden states
    (n, hidden_size) of the layers that distillation compares."""

    logits: Tensor | None
    states: Sequence[Tensor]


def answer_terms(own: Predictions, block: QuestionBlock, losses: LossesConfig) -> Terms:
    """What is always asked, also of baselines: `answer_ce` in nats per answer token, `first_acc`, and `copy_ce` in
    nats per copied token where the block has spans."""
    logits, labels = own.logits, block.labels[block.labels != -100]
    assert logits is not None
    place, spans = (t[block.labels != -100] for t in (block.place, block.spans))
    copied = bool(spans.any())
    answers = ~spans if copied else slice(None)  # to choose is to copy, and logits are as wide as the vocabulary
    terms = Terms()
    terms.add("answer_ce", F.cross_entropy(logits[answers], labels[answers]))
    terms.metrics["first_acc"] = first_token_accuracy(logits.detach(), labels, (place == 0) & ~spans).item()
    if copied:
        terms.add("copy_ce", F.cross_entropy(logits[spans], labels[spans]), losses.copy_weight)
    return terms


def early_terms(
    own: Predictions, teacher: Predictions | None, block: QuestionBlock, losses: LossesConfig, progress: float
) -> Terms:
    """What may be asked of answers' first tokens, `progress` (0 to 1) of the way through a stage.

    The teacher's predictions are those of the first K tokens; the receiver's own are of all that is supervised.
    """
    terms, supervised, logits = Terms(), block.labels != -100, own.logits
    assert logits is not None
    first = block.early(1)[supervised]
    weight = interpolate(
        losses.first_token_weight, losses.first_token_weight_end, progress, losses.first_token_schedule
    )
    if weight:
        terms.add("first_token_ce", F.cross_entropy(logits[first], block.labels[block.early(1)]), weight)
    if losses.first_token_entropy:
        terms.add("first_token_entropy", prediction_entropy(logits[first]), -losses.first_token_entropy)
    k = tokens_at(losses.k_tokens, losses.k_tokens_end, progress)
    early = block.early(k)[supervised]
    if losses.k_tokens_end is not None:
        terms.metrics["k_tokens"] = k
    if losses.k_token_weight:
        terms.add("k_token_ce", F.cross_entropy(logits[early], block.labels[block.early(k)]), losses.k_token_weight)
    if teacher is not None and teacher.logits is not None:
        terms.add("kd", logit_kd(logits[early], teacher.logits, losses.kd_temperature), losses.kd_weight)
    if teacher is not None and losses.state_kd_weight:
        states = [state[early] for state in own.states]
        terms.add("state_kd", state_kd(states, teacher.states, losses.state_kd_kind), losses.state_kd_weight)
    return terms


def reader_terms(
    reader: Reader, lm: LanguageModel, context: Context, block: QuestionBlock, losses: LossesConfig
) -> Terms:
    """What may be asked of the latents and of what a reader makes of them, apart from any prediction.

    To be called with the untouched model: it is what slots are compared with.
    """
    terms, latents, mask = Terms(), context.latents, context.latent_mask
    assert latents is not None and mask is not None and context.generated is not None
    values = reader.calibrate(context.generated)
    if losses.align_weight:
        answers, asked = _mean_answers(reader, lm, block)
        parts = reader.parts(values)
        terms.add("align", answer_alignment(parts, mask, answers, asked), losses.align_weight)
    if losses.manifold_weight:
        terms.add("manifold", statistics_distance(values[mask], *reader.known_statistics(lm)), losses.manifold_weight)
    if losses.latent_scale_weight:
        terms.add("latent_scale", scale_deviation(latents[mask]), losses.latent_scale_weight)
    if losses.output_rms_weight:
        groups = reader.target_groups().to(values.device)
        deviation = rms_deviation(values[mask], reader.expected_squares(), groups)
        terms.add("output_rms", deviation, losses.output_rms_weight)
    return terms


@torch.no_grad()
def _mean_answers(reader: Reader, lm: LanguageModel, block: QuestionBlock) -> tuple[Tensor, Tensor]:
    """Mean over each answer's tokens of what the receiver makes of them, (batch, n, heads, d), and which of the n
    segments of a row are questions (batch, n)."""
    chosen = block.contents()
    distinct, index = block.labels[chosen].unique(return_inverse=True)
    tokens = reader.parts_of_tokens(lm, distinct)[index]
    rows, segments = chosen.nonzero()[:, 0], block.segments[chosen] - 1
    n = int(block.segments.max())
    place = rows * n + segments
    sums = tokens.new_zeros(len(chosen) * n, *tokens.shape[1:]).index_add(0, place, tokens)
    counts = torch.bincount(place, minlength=len(chosen) * n)
    means = sums / counts.clamp(min=1)[:, None, None]
    return means.unflatten(0, (len(chosen), n)), (counts > 0).unflatten(0, (len(chosen), n))
