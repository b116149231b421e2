"""Stage 2: encoder and all generators at once, in closed form.

Reduced-rank ridge regression (Izenman 1975): the best linear map of rank d_z from the sender's window features to the
targets of *all* readers together. Its left factor is the encoder, its right factor, cut by receiver, the generators:
one Z, chosen to serve every reader. Targets are scaled to equal variance a group (a layer's keys, a layer's values).

A slot holds one token's keys and values, so it is predicted from that token's features and its neighbours' alone
(`band`) and not from the whole window: with a few hundred thousand tokens that is the better conditioned problem by
far. The rank is cut afterwards, from all predictions together, each weighted by how much the answers depend on it:
the squared gradient of the answer loss, the diagonal of the empirical Fisher information (as in Fisher-weighted SVD,
Hsu et al. 2022, arXiv 2207.00112).

A companion's dimensions of the latents (`encoder.companion`) are fitted afterwards, to what receivers still miss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from latentwire.core.errors import TrainingError
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.encoder.companion import Companion
from latentwire.model.encoding import Prepared, ReceiverText
from latentwire.model.receiver import Receiver
from latentwire.model.system import LatentWire
from latentwire.training.stages.importance import importance_of
from latentwire.training.stages.normal_equations import (
    NormalEquations,
    cholesky,
    gather,
    groups_of,
    shared_variance,
    targets_of,
    unpadded,
)


@dataclass
class Factors:
    """z = (x - mean_x) @ encoder, with unit variance; y = (z @ generator) * scale + mean_y."""

    mean_x: Tensor  # (d_x,)
    encoder: Tensor  # (d_x, rank)
    generator: Tensor  # (rank, d_y)
    scale: Tensor  # (d_y,)
    mean_y: Tensor  # (d_y,)


@dataclass(frozen=True)
class TargetOptions:
    """By what targets are predicted, and how much each of them matters.

    band: how many neighbours on each side of its own token predict a slot; None for the whole window.
    asked: texts with questions on which `importance_of` weighs the targets; without any, all weigh alike.
    importance_floor: share of the weights that is spread evenly.
    """

    band: int | None = None
    asked: Sequence[dict[str, ReceiverText]] = ()
    importance_floor: float = 0.2

    def importance(self, receivers: Mapping[str, Receiver]) -> Tensor | None:
        """(d_y,) weight of each target's squared error, for all receivers together; None where all weigh alike."""
        if not self.asked:
            return None
        weights = []
        for name, receiver in receivers.items():
            texts = [texts_of[name] for texts_of in self.asked]
            weights.append(importance_of(receiver, texts, self.importance_floor))
        return torch.cat(weights)


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
    """Reduced-rank ridge regression; `ridge` is a share of each input's own variance, `groups` (d_y,) scale together.

    importance: (d_y,) weight of each target's squared error when the rank is cut; None for equal weights once scaled.
    """
    mean_x, mean_y, variance, xx, xy = equations.centred()
    scale = shared_variance(variance, groups).sqrt()
    xy /= scale
    weight = torch.zeros_like(xy)
    everything = [(slice(0, len(xx)), torch.arange(xy.shape[1], device=xy.device))]
    for inputs, targets in bands.blocks(len(xx)) if bands else everything:
        block = xx[inputs, inputs].clone()
        block.diagonal().mul_(1 + ridge)
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
    """Share of the scaled targets' variance that the factors explain on rows x (n, d_x), y (n, d_y) that the fit did
    not see."""
    predicted = (x - factors.mean_x) @ factors.encoder @ factors.generator
    truth = (y - factors.mean_y) / factors.scale
    return 1.0 - float((truth - predicted).pow(2).sum() / truth.pow(2).sum())


def fit(
    system: LatentWire,
    passages: Iterable[Prepared],
    *,
    held_out: int,
    ridge: float,
    options: TargetOptions = TargetOptions(),
    **gathering: Any,
) -> dict[str, float]:
    """Fit the encoder and every receiver's generator; returns the held-out R² by receiver.

    The first `held_out` passages are set aside; `ridge` is a share of each input's own variance. `gathering`: options
    of `gather`.
    """
    receivers, encoder = system.receivers, system.sender.encoder
    if not isinstance(encoder, BackboneEncoder):
        raise TrainingError(f"encoder.type: the closed form solves 'backbone', not {system.config.encoder.type!r}")

    def rows(batch: Sequence[Prepared]) -> tuple[Tensor, Tensor]:
        x = torch.cat(encoder.window_features([sent for sent, _ in batch]))
        return x, targets_of(receivers, batch, x.device)

    equations, x, y = gather(passages, rows, held_out=held_out, **gathering)
    factors = solve_for(receivers, equations, encoder, ridge, options)
    set_map(encoder, factors)
    return hand_out(factors, receivers, x, y)


@torch.no_grad()
def forget_companion(system: LatentWire, anew: Mapping[str, Receiver]) -> None:
    """Leave a companion's dimensions of latents empty and receivers without any use for them, some (`anew`) without any
    use for all others as well."""
    encoder = system.sender.encoder
    assert isinstance(encoder, BackboneEncoder) and encoder.companion is not None
    width = encoder.companion.weight.zero_().shape[1]
    for receiver in system.receivers.values():
        receiver.reader.generator.forget(width)
    for receiver in anew.values():
        receiver.reader.generator.linear.zero_()


def fit_companion(
    system: LatentWire,
    receivers: Mapping[str, Receiver],
    passages: Iterable[Prepared],
    *,
    held_out: int,
    ridge: float,
    options: TargetOptions = TargetOptions(),
    **gathering: Any,
) -> dict[str, float]:
    """Fit the companion's dimensions of latents to what receivers miss in all others; returns the held-out share of it
    that they explain, by receiver.

    What receivers make of the other dimensions stays as it is, also where it was trained since its own fit. Options are
    those of `fit`.
    """
    sender, encoder = system.sender, system.sender.encoder
    assert isinstance(encoder, BackboneEncoder) and encoder.companion is not None
    companion = encoder.companion

    def rows(batch: Sequence[Prepared]) -> tuple[Tensor, Tensor]:
        sent = [text for text, _ in batch]
        x, (z, counts) = torch.cat(companion.window_features(sent)), sender.latents_of(sent)
        made = []
        for receiver in receivers.values():
            values = receiver.reader.generator(z.to(receiver.lm.device), counts.to(receiver.lm.device))
            made.append(unpadded(values.to(x.device), counts))
        return x, targets_of(receivers, batch, x.device) - torch.cat(made, 1)

    equations, x, y = gather(passages, rows, held_out=held_out, **gathering)
    factors = solve_for(receivers, equations, companion, ridge, options)
    rank = set_map(companion, factors)
    scores = {}
    for name, own, part in by_receiver(factors, receivers):
        generator = receivers[name].reader.generator
        with torch.no_grad():
            theirs = generator.linear[-companion.weight.shape[1] :].zero_()
            theirs[:rank] = (own.generator * own.scale).to(theirs.device) / generator.scale
        scores[name] = r_squared(own, x, y[:, part])
    return scores


def solve_for(
    receivers: Mapping[str, Receiver],
    equations: NormalEquations,
    model: BackboneEncoder | Companion,
    ridge: float,
    options: TargetOptions,
) -> Factors:
    """`solve` for a model's map to latents and all receivers' targets, on the model's device."""
    device, band = model.weight.device, options.band
    if band and model.keep is not None:
        band = 0  # tokens that were chosen are in an order of their own: none is another's neighbour
    phases = torch.cat([r.reader.target_phases() for r in receivers.values()]).to(device)
    bands = None if band is None else Bands(phases, model.phases, band)
    importance = options.importance(receivers)
    if importance is not None:
        importance = importance.to(device)
    groups = groups_of(receivers.values()).to(device)
    return solve(equations, groups, model.weight.shape[1], ridge, bands, importance)


@torch.no_grad()
def set_map(model: BackboneEncoder | Companion, factors: Factors) -> int:
    """Give a model the map to latents of a fit; returns how many dimensions that has."""
    rank = factors.encoder.shape[1]
    model.mean.copy_(factors.mean_x)
    model.weight.zero_()[:, :rank] = factors.encoder
    return rank


def by_receiver(factors: Factors, receivers: Mapping[str, Receiver]) -> Iterator[tuple[str, Factors, slice]]:
    """Each receiver's columns of a fit, and which they are."""
    start = 0
    for name, receiver in receivers.items():
        part = slice(start, start := start + receiver.reader.generator.linear.shape[1])
        own = factors.generator[:, part], factors.scale[part], factors.mean_y[part]
        yield name, Factors(factors.mean_x, factors.encoder, *own), part


@torch.no_grad()
def hand_out(factors: Factors, receivers: Mapping[str, Receiver], x: Tensor, y: Tensor) -> dict[str, float]:
    """Set every receiver's generator to its columns of the fit; returns R² by receiver on x (n, d_x) and y (n, d_y)."""
    scores = {}
    for name, own, part in by_receiver(factors, receivers):
        reader = receivers[name].reader
        reader.generator.set_linear(own.generator)
        reader.generator.scale.copy_(own.scale)
        reader.generator.shift.copy_(own.mean_y)
        reader.fitted()
        made = reader.generator.linear_map(len(own.generator)).to(own.generator)  # perhaps of a lower rank
        scores[name] = r_squared(replace(own, generator=made), x, y[:, part])
    return scores
