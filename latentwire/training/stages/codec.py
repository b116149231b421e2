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
from latentwire.core.batches import batched
from latentwire.core.names import LATENT
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.encoder.text import SenderText
from latentwire.model.encoding import Prepared
from latentwire.model.receiver import Receiver
from latentwire.model.system import LatentWire
from latentwire.training.codebooks import (
    Starts,
    Vocabulary,
    build_codebook,
    counted,
    fit_aq,
    fit_fsq,
    fit_rvq,
    principal_rotation,
)
from latentwire.training.stages.end_to_end import Batch, EndToEnd
from latentwire.training.stages.normal_equations import unpadded
from latentwire.wire.codebook import remember
from latentwire.wire.codecs import CODECS, LearnedCodec


class Information:
    """How errors of a latent are weighed: an error e counts for e' M e.

    To second order an error costs readers e' F e, with F the empirical Fisher information, the outer product of the
    answer loss's gradient with respect to a latent, added up over many: through attention and all that a reader makes
    of a latent. Quantisation by such a sensitivity follows SqueezeLLM (Kim et al. 2023, arXiv 2306.07629), here with
    all directions and not only the axes. But errors in the directions that matter most are soon so large that the loss
    grows more slowly than their square: M is the square root of F, the mean over receivers, by which answers
    lost 0.03 to 0.4 nats a token less in 330 to 1,060 bits a message.
    """

    def __init__(self, system: LatentWire, seed: int):
        self.receivers = system.receivers
        self.rng = random.Random(f"information-{seed}")
        self.sums: dict[str, Tensor] = {}

    def add(self, passages: Sequence[Prepared], z: Tensor, counts: Tensor) -> None:
        """Passages with their latents (batch, M, d_z), of which counts[i] in row i."""
        for name, receiver in self.receivers.items():
            block = receiver.pack([texts[name] for _, texts in passages], self.rng, copying=False)
            given = z.detach().to(receiver.lm.device, torch.float32).requires_grad_()
            with receiver.using(LATENT, dropout=False):
                terms = receiver.loss(receiver.read_latents(given, counts.to(given.device)), block)
            (gradient,) = torch.autograd.grad(terms.total * block.answer_tokens, given)
            rows = unpadded(gradient, counts).cpu().double()
            self.sums[name] = self.sums.get(name, 0) + rows.T @ rows

    def metric(self, floor: float) -> Tensor:
        """(d_z, d_z) with a mean over dimensions of 1.

        A share `floor` of it is what changes any number that a generator makes, so that no direction is given up that
        no gradient of these passages lies in.
        """
        made = torch.stack([_change(receiver) for receiver in self.receivers.values()]).mean(0)
        told = torch.stack([_of_mean_one(self.sums[name]) for name in self.receivers]).mean(0)
        return (1 - floor) * _of_mean_one(_root(told)).float() + floor * made


@torch.no_grad()
def _change(receiver: Receiver) -> Tensor:
    """(d_z, d_z) the squared change of what a receiver's generator makes, each number by its own scale."""
    linear = receiver.reader.generator.linear_map()
    return _of_mean_one((linear @ linear.T).cpu())


def _root(metric: Tensor) -> Tensor:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(metric)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _of_mean_one(metric: Tensor) -> Tensor:
    return metric * (len(metric) / metric.trace().clamp(min=torch.finfo(metric.dtype).tiny))


@torch.no_grad()
def collect_latents(
    system: LatentWire,
    passages: Sequence[Prepared],
    each: Callable[[Sequence[Prepared], Tensor, Tensor], None] = lambda passages, z, counts: None,
) -> tuple[Tensor, Starts]:
    """Latents of passages one behind the other (N, d_z), and which of them are the first of their passage (N,).

    each: is given every batch of passages, its latents (batch, M, d_z) and how many of them are real (batch,).
    """
    rows, starts = [], []
    for batch in batched(passages, 8):
        z, counts = system.sender.latents_of([sent for sent, _ in batch])
        rows.append(unpadded(z, counts).cpu())
        starts += [np.arange(count) == 0 for count in counts.tolist()]
        with torch.enable_grad():
            each(batch, z, counts)
    return torch.cat(rows), np.concatenate(starts)


def fit(
    system: LatentWire,
    passages: Sequence[Prepared],
    config: Config,
    report: Callable[[int], None] = lambda number: None,
) -> dict[str, dict[str, float]]:
    """Find a codebook for every codec of codec.learned; returns `bits_per_latent` by codec, and which share of the
    weighted variance is `kept`, on the last tenth of the passages, which nothing was found on."""
    own, done = config.codec, 0
    looked_at, kept_aside = _parted(passages, own.passages)
    information = Information(system, config.system.seed)

    def look(batch: Sequence[Prepared], z: Tensor, counts: Tensor) -> None:
        nonlocal done
        information.add(batch, z, counts)
        done += len(batch)
        report(done)

    z, starts = collect_latents(system, looked_at, look)
    aside, aside_starts = collect_latents(system, kept_aside)
    metric = information.metric(config.curriculum.closed_form.importance_floor)
    torch.manual_seed(config.system.seed)
    rotation, arrays = principal_rotation(z, metric, min(own.width, z.shape[1], len(z))).stored()
    y = (z - rotation.mean) @ rotation.into
    scores: dict[str, dict[str, float]] = {"bits_per_latent": {}, "kept": {}}
    for kind in own.learned:
        codec = CODECS[kind]
        assert isinstance(codec, LearnedCodec)
        if kind == "aq":
            vocabulary = _vocabulary(system, [sent for sent, _ in looked_at])
            found = fit_aq(z, vocabulary, rotation, own)
        else:
            found = (fit_rvq(y, own) if kind == "rvq" else fit_fsq(y, starts, own)).arrays
        book = remember(build_codebook(codec, arrays | found, z, starts))
        system.sender.codebooks[kind] = book
        writer = codec.with_book(book)
        scores["bits_per_latent"][kind] = _bits(writer, aside, aside_starts)
        scores["kept"][kind] = _kept(writer, aside, metric)
    return scores


def _vocabulary(system: LatentWire, texts: Sequence[SenderText]) -> Vocabulary:
    encoder = system.sender.encoder
    assert isinstance(encoder, BackboneEncoder)
    features, maps = encoder.vocabulary()
    return Vocabulary(features.cpu(), maps.cpu(), torch.cat([torch.tensor(encoder.tokens_read(t)) for t in texts]))


def recount(system: LatentWire, passages: Sequence[Prepared], config: Config) -> dict[str, dict[str, float]]:
    """Count the codes of every codec again, since the latents have changed; returns `bits_per_latent` as `fit` does.

    Rotation and codewords stay: sender and readers were trained with them.
    """
    looked_at, kept_aside = _parted(passages, config.codec.passages)
    (z, starts), (aside, aside_starts) = (collect_latents(system, part) for part in (looked_at, kept_aside))
    bits: dict[str, float] = {}
    for kind in config.codec.learned:
        book, codec = system.sender.codebooks[kind], CODECS[kind]
        assert isinstance(codec, LearnedCodec)
        new = remember(counted(codec.with_book(book), z, starts))
        system.sender.codebooks[kind] = new
        bits[kind] = _bits(codec.with_book(new), aside, aside_starts)
    return {"bits_per_latent": bits}


def _parted(passages: Sequence[Prepared], most: int) -> tuple[Sequence[Prepared], Sequence[Prepared]]:
    """The first `most` passages, and the last tenth of them, which nothing is found on if there are others."""
    passages = passages[:most]
    few = max(1, len(passages) // 10)
    return passages[:-few] or passages, passages[-few:]


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
