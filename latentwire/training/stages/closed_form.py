"""Stage 2: encoder and all generators at once, in closed form.

Reduced-rank ridge regression (Izenman 1975): the best linear map of rank d_z from the sender's window features to the
targets of *all* readers together. Its left factor is the encoder, its right factor, cut by receiver, the generators:
one Z, chosen to serve every reader. Targets are scaled to equal variance a group (a layer's keys, a layer's values).

A slot holds one token's keys and values, so it is predicted from that token's features and its neighbours' alone
(`band`) and not from the whole window: with a few hundred thousand tokens that is the better conditioned problem by
far. The rank is cut afterwards, from all predictions together, each weighted by how much the answers depend on it:
the squared gradient of the answer loss, the diagonal of the empirical Fisher information (as in Fisher-weighted SVD,
Hsu et al. 2022, arXiv 2207.00112).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentwire.core.errors import TrainingError
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.model.encoding import ReceiverText
from latentwire.model.receiver import LATENT, Receiver
from latentwire.model.system import LatentWire
from latentwire.training.stages.normal_equations import (
    NormalEquations,
    Prepared,
    cholesky,
    gather,
    groups_of,
    shared_variance,
)


@dataclass
class Factors:
    """z = (x - mean_x) @ encoder, with unit variance; y = (z @ generator) * scale + mean_y."""

    mean_x: Tensor
    encoder: Tensor  # (d_x, rank)
    generator: Tensor  # (rank, d_y)
    scale: Tensor
    mean_y: Tensor


@dataclass
class Bands:
    """Which inputs predict a target: of `phases` equal blocks of inputs, those within `width` of the target's own.

    of: (d_y,) the phase of each target; -1 where all inputs predict it.
    """

    of: Tensor
    phases: int
    width: int

    def blocks(self, d_x: int) -> Iterator[tuple[slice, Tensor]]:
        """Inputs and the targets (indices) that they predict."""
        size = d_x // self.phases
        for phase in self.of.unique().tolist():
            first, last = (0, self.phases) if phase < 0 else (phase - self.width, phase + self.width + 1)
            yield slice(max(0, first) * size, min(self.phases, last) * size), (self.of == phase).nonzero()[:, 0]


def solve(
    equations: NormalEquations,
    groups: Tensor,
    rank: int,
    ridge: float,
    bands: Bands | None = None,
    importance: Tensor | None = None,
) -> Factors:
    """Reduced-rank ridge regression; `ridge` is a share of the mean diagonal of X'X, `groups` (d_y,) scale together.

    importance: (d_y,) weight of each target's squared error when the rank is cut; None for equal weights once scaled.
    """
    mean_x, mean_y, variance, xx, xy = equations.centred()
    scale = shared_variance(variance, groups).sqrt()
    xy /= scale
    weight = torch.zeros_like(xy)
    everything = [(slice(0, len(xx)), torch.arange(xy.shape[1], device=xy.device))]
    for inputs, targets in bands.blocks(len(xx)) if bands else everything:
        block = xx[inputs, inputs].clone()
        block.diagonal().add_(ridge * block.diagonal().mean())
        weight[inputs, targets] = torch.cholesky_solve(xy[inputs, targets], cholesky(block))
    # With X'X = LL', the predictions' Gram matrix is (L'W)'(L'W): its leading right singular vectors are the directions
    # of the targets in which the predictions vary most.
    xx.diagonal().add_(1e-4 * xx.diagonal().mean())
    each = torch.ones_like(scale) if importance is None else (importance * scale.pow(2)).sqrt()
    fitted = cholesky(xx).T @ (weight * each)
    rank = min(rank, *fitted.shape)
    torch.manual_seed(0)  # its random start must not depend on what ran before
    v = torch.svd_lowrank(fitted, q=min(rank + 64, *fitted.shape), niter=2)[2][:, :rank]
    std = ((fitted @ v).pow(2).sum(0) / equations.rows).clamp(min=1e-8).sqrt()  # z gets unit variance
    return Factors(mean_x, weight @ (each[:, None] * v / std), (v * std).T / each, scale, mean_y)


def r_squared(factors: Factors, x: Tensor, y: Tensor) -> float:
    """Share of the scaled targets' variance that the factors explain on rows that the fit did not see."""
    predicted = (x - factors.mean_x) @ factors.encoder @ factors.generator
    truth = (y - factors.mean_y) / factors.scale
    return 1.0 - float((truth - predicted).pow(2).sum() / truth.pow(2).sum())


def importance_of(receiver: Receiver, texts: Sequence[ReceiverText], batch_size: int, floor: float) -> Tensor:
    """(d_out,) mean squared gradient of the answer loss by each target number, over texts and windows.

    A share `floor` of what they weigh together is spread evenly over the scaled targets, so that none is given up.
    """
    total, seen = torch.zeros(1, device=receiver.lm.device), []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        values, counts = receiver.targets(batch)
        values = values.float().requires_grad_(True)
        block = receiver.pack(batch, random.Random(start), copying=False)
        with receiver.using(LATENT):
            terms = receiver.loss(receiver.reader.context(receiver.lm, values, counts), block)
        (gradient,) = torch.autograd.grad(terms.total, values)
        total = total + gradient.pow(2).sum((0, 1))
        seen += [v[:n] for v, n in zip(values.detach(), counts.tolist(), strict=True)]
    variance = shared_variance(torch.cat(seen).var(0), receiver.reader.target_groups().to(total.device)).clamp(
        min=1e-12
    )
    share = total * variance  # how much of the loss hangs on each number's variation
    return ((1 - floor) * share / share.mean() + floor) / variance


def fit(
    system: LatentWire,
    passages: Iterable[Prepared],
    *,
    held_out: int,
    ridge: float,
    band: int | None = None,
    asked: Sequence[dict[str, ReceiverText]] = (),
    importance_floor: float = 0.2,
    **gathering: Any,
) -> dict[str, float]:
    """Fit the encoder and every receiver's generator; returns the held-out R² by receiver.

    The first `held_out` passages are set aside. `band`: how many neighbours on each side of its own token predict a
    slot; None for the whole window. `asked`: texts with questions on which `importance_of` weighs the targets, once the
    sums are there; without any, all weigh alike. Other options are those of `gather`.
    """
    receivers, encoder = system.receivers, system.sender.encoder
    if not isinstance(encoder, BackboneEncoder):
        raise TrainingError(f"encoder.type: the closed form solves 'backbone', not {system.config.encoder.type!r}")
    equations, x, y = gather(
        passages, lambda texts: torch.cat(encoder.window_features(texts)), receivers, held_out=held_out, **gathering
    )
    groups, phases = groups_of(receivers.values()), [r.reader.target_phases() for r in receivers.values()]
    device = encoder.weight.device
    if band and encoder.keep is not None:
        band = 0  # tokens that were chosen are in the order of their surprisal: none is another's neighbour
    bands = None if band is None else Bands(torch.cat(phases).to(device), encoder.phases, band)
    importance = None
    if asked:
        weights = [importance_of(r, [t[name] for t in asked], 4, importance_floor) for name, r in receivers.items()]
        importance = torch.cat(weights).to(device)
    factors = solve(equations, groups.to(device), encoder.weight.shape[1], ridge, bands, importance)
    rank = factors.encoder.shape[1]
    with torch.no_grad():
        encoder.mean.copy_(factors.mean_x)
        encoder.weight.zero_()[:, :rank] = factors.encoder
    return hand_out(factors, receivers, x, y)


@torch.no_grad()
def hand_out(factors: Factors, receivers: Mapping[str, Receiver], x: Tensor, y: Tensor) -> dict[str, float]:
    """Set every receiver's generator to its columns of the fit; returns R² by receiver on rows x and y."""
    scores, start = {}, 0
    for name, receiver in receivers.items():
        generator = receiver.reader.generator
        part = slice(start, start := start + generator.linear.shape[1])
        own = Factors(
            factors.mean_x, factors.encoder, factors.generator[:, part], factors.scale[part], factors.mean_y[part]
        )
        generator.set_linear(own.generator)
        generator.scale.copy_(own.scale)
        generator.shift.copy_(own.mean_y)
        receiver.reader.fitted()
        scores[name] = r_squared(own, x, y[:, part])
    return scores
