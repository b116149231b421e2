"""What the loop knows of a stage."""

from __future__ import annotations

import random
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from torch import Tensor, nn

from latentwire.core.batches import batched


@dataclass
class ParameterGroup:
    """Parameters under one name and one peak learning rate."""

    name: str
    parameters: list[nn.Parameter]
    lr: float


@dataclass
class StepOutput:
    """Result of one forward pass: the loss (nats per answer token), what it cost, and what to log.

    terms: the weighted terms, by name, that the loss is the sum of.
    """

    loss: Tensor
    tokens: int
    receiver: str
    metrics: dict[str, float] = field(default_factory=dict)
    terms: dict[str, Tensor] = field(default_factory=dict)


class TrainModule(Protocol):
    """A stage. Everything it draws is a function of the step, so that a resumed run takes the identical next step."""

    name: str
    batches_per_epoch: int
    """Micro-batches after which each receiver has seen all passages once."""
    total_batches: int
    """Micro-batches of the whole stage, set by the trainer: what changes over a stage goes by it."""

    def parameter_groups(self) -> list[ParameterGroup]: ...

    def batch(self, index: int) -> Any:
        """The index-th micro-batch of the run."""

    def size(self, batch: Any) -> tuple[str, int]:
        """Which receiver reads a micro-batch, and of how many answer tokens its loss is the mean."""

    def forward(self, batch: Any) -> StepOutput: ...

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What the stage trains, as {file stem: tensors}."""

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None: ...


def progress_of(index: int, total: int) -> float:
    """How far through a stage a micro-batch is: 0 for the first one, 1 for the last one."""
    return min(1.0, index / (total - 1)) if total > 1 else 0.0


def epoch_batches(items: Sized, batch_size: int) -> int:
    """Micro-batches in one pass over items: see `shuffled`."""
    return max(1, len(items) // batch_size)


POOL = 16
"""Batches whose members are sorted by length together."""


def shuffled(lengths: Sequence[int], batch_size: int, index: int, seed: str) -> tuple[list[int], random.Random]:
    """Members of the index-th batch when items are shuffled anew each epoch, and a generator for the batch's draws.

    Batches hold items of similar length (`lengths`: any measure of an item's cost), so that little is padded: within
    each run of POOL batches items are sorted by length, and then the batches are shuffled. What does not fill a batch
    is dropped from the epoch, unless there is nothing else.
    """
    size = min(batch_size, len(lengths))
    epoch, place = divmod(index, len(lengths) // size)
    return _epoch(tuple(lengths), size, epoch, seed)[place], random.Random(f"draw-{seed}-{index}")


@lru_cache(maxsize=4)
def _epoch(lengths: tuple[int, ...], size: int, epoch: int, seed: str) -> list[list[int]]:
    rng = random.Random(f"order-{seed}-{epoch}")
    order = rng.sample(range(len(lengths)), len(lengths) // size * size)
    batches: list[list[int]] = []
    for pool in batched(order, POOL * size):
        batches += batched(sorted(pool, key=lambda i: lengths[i]), size)
    rng.shuffle(batches)
    return batches
