"""Models that take turns in a device's memory."""

from __future__ import annotations

import torch
from torch import nn


class Turns:
    """At most one of several models has its weights on the device; the others' wait on the CPU.

    Only frozen parameters move. What is trained stays, or an optimizer would lose its moments' place, and is small.
    """

    def __init__(self) -> None:
        self.holder: nn.Module | None = None

    def take(self, model: nn.Module, device: torch.device) -> None:
        """Bring a model's weights to the device, and those of the one that was there to the CPU."""
        if self.holder is not model:
            self.release()
            _move(model, device)
            self.holder = model

    def release(self) -> None:
        """Send everything to the CPU."""
        if self.holder is not None:
            _move(self.holder, torch.device("cpu"))
            self.holder = None


def _move(model: nn.Module, device: torch.device) -> None:
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(device)
