"""Stage 4: codebooks for the latents that the trained sender makes, then training with the codes in the loop.

The gradient goes straight through the quantiser (Bengio et al., arXiv 1308.3432): sender, readers and LoRA learn to
live with what the codes leave of the latents, of all payload layers or of the first few.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentwire.config.schema import Config
from latentwire.model.encoding import ReceiverText
from latentwire.model.receiver import Receiver
from latentwire.model.system import LatentWire
from latentwire.training.quantizers import Starts, build_codebook, fit_fsq, fit_rvq, principal_rotation
from latentwire.training.stages.end_to_end import Batch, EndToEnd, Prepared
from latentwire.training.stages.importance import importance_of
from latentwire.training.stages.normal_equations import batched
from latentwire.wire.codebook import remember
from latentwire.wire.codecs import CODECS, LearnedCodec


def metric_of(receiver: Receiver, asked: Sequence[ReceiverText], floor: float) -> Tensor:
    """(d_z, d_z) how much an error of a latent matters to a reader: the squared change of what it generates, each
    number weighed by the answer loss on the texts that are `asked` (`importance_of`). The mean over dimensions is 1.
    Without texts, all that it generates matters alike.
    """
    generator = receiver.reader.generator
    weight = importance_of(receiver, asked, floor) if asked else generator.scale.pow(-2)
    linear = generator.linear if generator.down is None else generator.down @ generator.linear
    change = linear.detach() * generator.scale * weight.to(linear.device).sqrt()
    metric = change @ change.T
    return metric * (len(metric) / metric.trace())


@torch.no_grad()
def latents_of(
    system: LatentWire, passages: Sequence[Prepared], report: Callable[[int], None] = lambda number: None
) -> tuple[Tensor, Starts]:
    """Latents of passages one behind the other (N, d_z), and which of them are the first of their passage (N,).

    report: is told how many passages are done.
    """
    rows, starts = [], []
    for number, batch in enumerate(batched(passages, 8)):
        report(8 * number)
        z, counts = system.sender.latents_of([sent for sent, _ in batch])
        for one, count in zip(z.cpu(), counts.tolist(), strict=True):
            rows.append(one[:count])
            starts.append(np.arange(count) == 0)
    return torch.cat(rows), np.concatenate(starts)


def fit(
    system: LatentWire,
    passages: Sequence[Prepared],
    config: Config,
    report: Callable[[int], None] = lambda number: None,
) -> dict[str, dict[str, float]]:
    """Find a codebook for every codec of codec.learned; returns `bits_per_latent` by codec, and which share of the
    weighted variance is `kept`, on the last tenth of the passages, which nothing was found on."""
    own, form = config.codec, config.curriculum.closed_form
    passages = passages[: own.passages]
    asked = passages[: form.importance_passages]
    metric = torch.stack(
        [
            metric_of(receiver, [texts[name] for _, texts in asked], form.importance_floor).cpu()
            for name, receiver in system.receivers.items()
        ]
    ).mean(0)
    few = max(1, len(passages) // 10)
    z, starts = latents_of(system, passages[:-few] or passages, report)
    aside, aside_starts = latents_of(system, passages[-few:])
    torch.manual_seed(config.system.seed)
    rotation = principal_rotation(z, metric, min(own.width, z.shape[1], len(z)))
    y = (z - rotation.mean) @ rotation.into
    scores: dict[str, dict[str, float]] = {"bits_per_latent": {}, "kept": {}}
    for kind in own.learned:
        codec = CODECS[kind]
        assert isinstance(codec, LearnedCodec)
        words, layers = fit_rvq(y, own) if kind == "rvq" else fit_fsq(y, starts, own)
        book = remember(build_codebook(codec, rotation, words, layers, z, starts))
        system.sender.codebooks[kind] = book
        writer = codec.with_book(book)
        scores["bits_per_latent"][kind] = _bits(writer, aside, aside_starts)
        scores["kept"][kind] = _kept(writer, aside, metric)
    return scores


def _bits(codec: LearnedCodec, z: Tensor, starts: Starts) -> float:
    messages = np.split(z.numpy(), np.flatnonzero(starts)[1:])
    return 8 * sum(len(layer) for one in messages for layer in codec.encode(one)) / len(z)


def _kept(codec: LearnedCodec, z: Tensor, metric: Tensor) -> float:
    error, centred = torch.from_numpy(codec.quantized(z.numpy())) - z, z - z.mean(0)
    return 1 - float(((error @ metric) * error).sum() / ((centred @ metric) * centred).sum())


@dataclass(frozen=True)
class Sending:
    """How the latents of a batch are sent: with which codec, in how many payload layers."""

    codec: LearnedCodec
    layers: int


class CodecTuning(EndToEnd):
    """End-to-end training on latents as they arrive. A share codec.float_share of the rounds is sent unquantised, a
    share codec.drop_layers in some of the payload layers only; codecs take turns."""

    name = "codec"

    def sending(self, batch: Batch) -> Sending | None:
        """Drawn for each round, so that all receivers read the same message."""
        config, rng = self.config.codec, random.Random(f"codec-{self.config.system.seed}-{batch.round}")
        if rng.random() < config.float_share:
            return None
        kind = config.learned[batch.round % len(config.learned)]
        codec = self.system.sender.ready(kind)
        assert isinstance(codec, LearnedCodec) and codec.book is not None
        most = len(codec.book.layers)
        drops = most > 1 and rng.random() < config.drop_layers
        return Sending(codec, rng.randint(1, most - 1) if drops else most)

    def sent(self, z: Tensor, batch: Batch) -> Tensor:
        sending = self.sending(batch)
        if sending is None:
            return z
        rows = z.detach().float().cpu().flatten(0, 1).numpy()
        arrived = torch.from_numpy(sending.codec.quantized(rows, sending.layers)).to(z).view_as(z)
        return z + (arrived - z).detach()

    def reads_text(self, index: int) -> bool:
        return False

    def progress(self, index: int) -> float:
        return 1.0  # schedules have come to their ends before
