"""Stage 2: encoder and all generators at once, in closed form.

Reduced-rank ridge regression (Izenman 1975): the best linear map of rank d_z from the sender's window features to the
targets of *all* readers together. Its left factor is the encoder, its right factor, cut by receiver, the generators:
one Z, chosen to serve every reader. Targets are scaled to equal variance a group (a layer's keys, a layer's values).

A slot holds one token's keys and values, so it is predicted from that token's features and its neighbours' alone
(`band`) and not from the whole window: with a few hundred thousand tokens that is the better conditioned problem by
far. The rank is cut afterwards, from all predictions together, each weighted by how much the answers depend on it:
the squared gradient of the answer loss, the diagonal of the empirical Fisher information (as in Fisher-weighted SVD,
Hsu et al. 2022, arXiv 2207.00112).

The normal equations are accumulated batch by batch, so the text may be of any length at constant memory. A fit that is
stopped keeps its sums and goes on from them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from latentwire.checkpoint.tensors import INDEX, load_folder, read_info, save_folder
from latentwire.core.errors import TrainingError
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.encoder.text import SenderText
from latentwire.model.encoding import ReceiverText
from latentwire.model.receiver import LATENT, Receiver
from latentwire.model.system import LatentWire
from latentwire.training.interrupt import Interrupted, StopRequest

SUMS = ("origin_x", "origin_y", "xx", "xy", "x", "y", "y2")


class NormalEquations:
    """Sums of X'X, X'Y, X, Y and Y² over rows given batch by batch, in fp32.

    Rows are gathered until there are `chunk` of them, because an update touches the whole of X'X and X'Y; and they
    are centred on the first chunk's means before they are multiplied, which keeps fp32 sums exact enough.
    """

    def __init__(self, chunk: int = 2048) -> None:
        self.chunk = chunk
        self.rows = 0
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """x: (rows, d_x); y: (rows, d_y)."""
        self.waiting.append((x, y))
        if sum(len(x) for x, _ in self.waiting) >= self.chunk:
            self._flush()

    @property
    def seen(self) -> bool:
        """Whether any row was added."""
        return self.rows > 0 or bool(self.waiting)

    def _flush(self) -> None:
        if not self.waiting:
            return
        x, y = (torch.cat(parts) for parts in zip(*self.waiting, strict=True))
        self.waiting = []
        if not self.rows:
            self.origin_x, self.origin_y = x.mean(0), y.mean(0)
            d_x, d_y = x.shape[1], y.shape[1]
            self.xx, self.xy = x.new_zeros(d_x, d_x), x.new_zeros(d_x, d_y)
            self.x, self.y, self.y2 = x.new_zeros(d_x), x.new_zeros(d_y), x.new_zeros(d_y)
        for name in SUMS:  # sums that were kept come back on the CPU
            setattr(self, name, getattr(self, name).to(x.device))
        x, y = x - self.origin_x, y - self.origin_y
        self.xx.addmm_(x.T, x)
        self.xy.addmm_(x.T, y)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.y2 += y.pow(2).sum(0)
        self.rows += len(x)

    def save(self, folder: Path, passages: int) -> None:
        """Keep the sums over the first `passages` passages."""
        self._flush()
        sums = {name: getattr(self, name) for name in SUMS}
        save_folder(folder, {"sums": sums}, {"rows": self.rows, "passages": passages})

    def load(self, folder: Path) -> int:
        """Take up kept sums; returns how many passages are in them."""
        for name, tensor in load_folder(folder)["sums"].items():
            setattr(self, name, tensor)
        info = read_info(folder)
        self.rows = info["rows"]
        return int(info["passages"])

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Means of X and Y, variance of Y, and the centred sums X'X and X'Y (in place: call once)."""
        self._flush()
        mean_x, mean_y = self.x / self.rows, self.y / self.rows
        variance = (self.y2 / self.rows - mean_y.pow(2)).clamp(min=1e-12)
        self.xx.addr_(mean_x, mean_x, alpha=-self.rows)
        self.xy.addr_(mean_x, mean_y, alpha=-self.rows)
        return mean_x + self.origin_x, mean_y + self.origin_y, variance, self.xx, self.xy


@dataclass
class Factors:
    """z = (x - mean_x) @ encoder, with unit variance; y = (z @ generator) * scale + mean_y."""

    mean_x: Tensor
    encoder: Tensor  # (d_x, rank)
    generator: Tensor  # (rank, d_y)
    scale: Tensor
    mean_y: Tensor


def group_mean(variance: Tensor, groups: Tensor) -> Tensor:
    """(d_y,) the mean variance of each target's group."""
    counts = torch.bincount(groups).clamp(min=1)
    return (torch.bincount(groups, weights=variance.double()) / counts)[groups].float()


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
    encoder: Tensor | None = None,
) -> Factors:
    """Reduced-rank ridge regression; `ridge` is a share of the mean diagonal of X'X, `groups` (d_y,) scale together.

    importance: (d_y,) weight of each target's squared error when the rank is cut; None for equal weights once scaled.

    With a fixed `encoder` (d_x, rank), only the generator is solved: how a receiver is added to a trained sender. The
    mean that belongs to that encoder is then the caller's affair; the shift takes up the difference.
    """
    mean_x, mean_y, variance, xx, xy = equations.centred()
    scale = group_mean(variance, groups).sqrt()
    xy /= scale
    if encoder is not None:
        gram = encoder.T @ xx @ encoder
        gram.diagonal().add_(1e-4 * gram.diagonal().mean())
        return Factors(mean_x, encoder, torch.linalg.solve(gram, encoder.T @ xy), scale, mean_y)
    weight = torch.zeros_like(xy)
    everything = [(slice(0, len(xx)), torch.arange(xy.shape[1], device=xy.device))]
    for inputs, targets in bands.blocks(len(xx)) if bands else everything:
        block = xx[inputs, inputs].clone()
        block.diagonal().add_(ridge * block.diagonal().mean())
        weight[inputs, targets] = torch.cholesky_solve(xy[inputs, targets], torch.linalg.cholesky(block))
    # With X'X = LL', the predictions' Gram matrix is (L'W)'(L'W): its leading right singular vectors are the directions
    # of the targets in which the predictions vary most.
    xx.diagonal().add_(1e-4 * xx.diagonal().mean())
    each = torch.ones_like(scale) if importance is None else (importance * scale.pow(2)).sqrt()
    fitted = torch.linalg.cholesky(xx).T @ (weight * each)
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


Prepared = tuple[SenderText, dict[str, ReceiverText]]


@torch.no_grad()
def rows_of(system: LatentWire, batch: Sequence[Prepared], receivers: dict[str, Receiver]) -> tuple[Tensor, Tensor]:
    """Window features (rows, d_features) and all readers' targets (rows, sum of d_out) of some passages."""
    features = torch.cat(system.sender.features([sent for sent, _ in batch])).float()
    targets = [targets_of(r, [texts[name] for _, texts in batch]) for name, r in receivers.items()]
    return features, torch.cat([t.to(features.device) for t in targets], 1)


def targets_of(receiver: Receiver, texts: Sequence[ReceiverText]) -> Tensor:
    """A reader's targets (rows, d_out) of some texts, one row a window."""
    values, counts = receiver.targets(texts)
    return torch.cat([v[:n] for v, n in zip(values, counts.tolist(), strict=True)]).float()


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
    variance = group_mean(torch.cat(seen).var(0), receiver.reader.target_groups().to(total.device)).clamp(min=1e-12)
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
    batch_size: int = 8,
    report: Callable[[int], None] = lambda rows: None,
    state: Path | None = None,
) -> dict[str, float]:
    """Fit the encoder and every receiver's generator; returns the held-out R² by receiver.

    The first `held_out` passages are set aside. `band`: how many neighbours on each side of its own token predict a
    slot; None for the whole window. `asked`: texts with questions on which `importance_of` weighs the targets, once the
    sums are there; without any, all weigh alike.
    With a folder `state`, Ctrl-C keeps the sums there (Interrupted), and the next call goes on from them.
    """
    receivers, encoder = system.receivers, system.sender.encoder
    if not isinstance(encoder, BackboneEncoder):
        raise TrainingError(f"encoder.type: the closed form solves 'backbone', not {system.config.encoder.type!r}")
    passages = iter(passages)
    aside = [rows_of(system, batch, receivers) for batch in batched(islice(passages, held_out), batch_size)]
    equations, done = NormalEquations(), 0
    if state is not None and (state / INDEX).is_file():
        done = equations.load(state)
        report(equations.rows)
    with StopRequest() as stop:
        for batch in batched(islice(passages, done, None), batch_size):
            rows = rows_of(system, batch, receivers)
            equations.add(*rows)
            done += len(batch)
            report(len(rows[0]))
            if stop.requested:
                if state is None:
                    raise KeyboardInterrupt
                equations.save(state, done)
                raise Interrupted(f"stopped after {done} passages, saved to {state}. The same command goes on there.")
    if not equations.seen:
        raise TrainingError(
            f"curriculum.closed_form.held_out: no passage is left to fit on after {held_out} are set aside"
        )
    groups, phases, offset = [], [], 0
    for receiver in receivers.values():
        own = receiver.reader.target_groups()
        groups.append(own + offset)
        phases.append(receiver.reader.target_phases())
        offset += int(own.max()) + 1
    device = encoder.weight.device
    bands = None if band is None else Bands(torch.cat(phases).to(device), encoder.phases, band)
    importance = None
    if asked:
        weights = [importance_of(r, [t[name] for t in asked], 4, importance_floor) for name, r in receivers.items()]
        importance = torch.cat(weights).to(device)
    factors = solve(equations, torch.cat(groups).to(device), encoder.weight.shape[1], ridge, bands, importance)
    rank = factors.encoder.shape[1]
    with torch.no_grad():
        encoder.mean.copy_(factors.mean_x)
        encoder.weight.zero_()[:, :rank] = factors.encoder
    x = torch.cat([x for x, _ in aside])
    y = torch.cat([y for _, y in aside])
    scores, start = {}, 0
    for name, receiver in receivers.items():
        generator = receiver.reader.generator
        part = slice(start, start := start + generator.linear.shape[1])
        generator.set_linear(factors.generator[:, part])
        with torch.no_grad():
            generator.scale.copy_(factors.scale[part])
            generator.shift.copy_(factors.mean_y[part])
            receiver.reader.fitted()
        part_factors = Factors(
            factors.mean_x, factors.encoder, factors.generator[:, part], factors.scale[part], factors.mean_y[part]
        )
        scores[name] = r_squared(part_factors, x, y[:, part])
    return scores


def batched(items: Iterable[Prepared], size: int) -> Iterable[list[Prepared]]:
    batch: list[Prepared] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
