"""The loss of a training step, as named terms."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from operator import add

from torch import Tensor


@dataclass
class Terms:
    """Terms by name: `weighted` ones sum to the loss; `metrics` hold their values without weight, and what else is
    worth logging."""

    weighted: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, value: Tensor, weight: float = 1.0) -> None:
        """Add a scalar term."""
        self.weighted[name] = weight * value
        self.metrics[name] = value.item()

    def extend(self, other: Terms) -> None:
        """Add all terms and metrics of another one."""
        self.weighted |= other.weighted
        self.metrics |= other.metrics

    @property
    def total(self) -> Tensor:
        return reduce(add, self.weighted.values())
