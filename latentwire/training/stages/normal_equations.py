"""Least squares from streamed text: the sums of the normal equations, and how passages become their rows.

The sums are accumulated batch by batch, so the text may be of any length at constant memory. What is stopped keeps its
sums and goes on from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from latentwire.checkpoint.tensors import load_folder, read_info, save_folder
from latentwire.core.batches import batched
from latentwire.core.errors import Interrupted, TrainingError
from latentwire.core.names import INDEX
from latentwire.model.encoding import Prepared
from latentwire.model.receiver import Receiver
from latentwire.training.interrupt import StopRequest

T = TypeVar("T")
SUMS = ("origin_x", "origin_y", "xx", "xy", "x", "y", "y2")
CHUNK = 2048
"""Rows, at least, that are added to the sums at once."""


def cholesky(matrix: Tensor) -> Tensor:
    """The lower factor of a matrix (n, n) that ridge has made positive definite; TrainingError where it has not."""
    try:
        return torch.linalg.cholesky(matrix)
    except torch.linalg.LinAlgError:
        raise TrainingError(
            "curriculum.closed_form.ridge: too small for so little text; a larger one or more passages are needed"
        ) from None


class NormalEquations:
    """Sums of X'X, X'Y, X, Y and Y² over rows given batch by batch, in fp32.

    Rows are gathered until there are CHUNK of them, because an update touches the whole of X'X and X'Y; and they
    are centred on the first chunk's means before they are multiplied, which keeps fp32 sums exact enough.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """x: (rows, d_x); y: (rows, d_y)."""
        self.waiting.append((x, y))
        if sum(len(x) for x, _ in self.waiting) >= CHUNK:
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

    def load(self, folder: Path, device: torch.device) -> int:
        """Take up kept sums, on the device of the rows to come; returns how many passages are in them."""
        for name, tensor in load_folder(folder)["sums"].items():
            setattr(self, name, tensor.to(device))
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


def gather(
    passages: Iterable[T],
    rows_of: Callable[[Sequence[T]], tuple[Tensor, Tensor]],
    *,
    held_out: int,
    batch_size: int = 8,
    report: Callable[[int], None] = lambda rows: None,
    state: Path | None = None,
) -> tuple[NormalEquations, Tensor, Tensor]:
    """The sums over passages of inputs X and targets Y, and X and Y of the first `held_out` passages, which are set
    aside. `rows_of` makes the rows of both from some passages.

    With a folder `state`, Ctrl-C keeps the sums there (Interrupted), and the next call goes on from them.
    """

    rows_of = torch.no_grad()(rows_of)
    passages = iter(passages)
    aside = [rows_of(batch) for batch in batched(islice(passages, held_out), batch_size)]
    equations, done = NormalEquations(), 0
    if state is not None and (state / INDEX).is_file():
        done = equations.load(state, aside[0][0].device)
        report(equations.rows)
    with StopRequest() as stop:
        for batch in batched(islice(passages, done, None), batch_size):
            x, y = rows_of(batch)
            equations.add(x, y)
            done += len(batch)
            report(len(x))
            if stop.requested:
                if state is None:
                    raise KeyboardInterrupt
                equations.save(state, done)
                raise Interrupted(f"stopped after {done} passages, saved to {state}. The same command goes on there.")
    if not equations.seen:
        raise TrainingError(
            f"curriculum.closed_form.held_out: no passage is left to fit on after {held_out} are set aside"
        )
    return equations, torch.cat([x for x, _ in aside]), torch.cat([y for _, y in aside])


def targets_of(receivers: Mapping[str, Receiver], batch: Sequence[Prepared], device: torch.device) -> Tensor:
    """All readers' targets (rows, d_y) of some passages, one row a window."""
    every = [unpadded(*r.targets([texts[name] for _, texts in batch])) for name, r in receivers.items()]
    return torch.cat([y.to(device) for y in every], 1)


def unpadded(values: Tensor, counts: Tensor) -> Tensor:
    """The counts[i] first of each row of values (batch, M, d), one below the other: (rows, d), fp32."""
    return torch.cat([v[:n] for v, n in zip(values, counts.tolist(), strict=True)]).float()


def groups_of(receivers: Iterable[Receiver]) -> Tensor:
    """(d_y,) the group of each target of several receivers, which share none."""
    groups: list[Tensor] = []
    offset = 0
    for receiver in receivers:
        own = receiver.reader.target_groups() + offset
        groups.append(own)
        offset = int(own.max()) + 1
    return torch.cat(groups)


def shared_variance(variance: Tensor, groups: Tensor) -> Tensor:
    """(d_y,) the mean variance of each target's group."""
    cells = groups.cpu()  # not every device has fp64
    means = torch.bincount(cells, weights=variance.cpu().double()) / torch.bincount(cells).clamp(min=1)
    return means[cells].float().to(variance.device)
