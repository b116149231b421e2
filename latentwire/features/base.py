"""The life cycle of a feature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn


class Feature(Protocol):
    """An optional part that is attached to a receiver's model and can be taken off without a trace."""

    def attach(self, model: nn.Module) -> AbstractContextManager[None]:
        """Attach to a model; leaving the context restores the base model exactly."""

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that training moves (fp32)."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold to rebuild the feature."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up a saved state; a missing, surplus or misshapen tensor is a CheckpointError."""


FEATURES: dict[str, Callable[..., Feature]] = {}


def register(name: str) -> Callable[[Callable[..., Feature]], Callable[..., Feature]]:
    """Class decorator: make a feature known under its config name (`features.use_<name>`)."""

    def add(factory: Callable[..., Feature]) -> Callable[..., Feature]:
        FEATURES[name] = factory
        return factory

    return add
