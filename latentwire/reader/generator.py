"""The map that every reader starts with: latents to the numbers that the reader needs, standardised."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Generator(nn.Module):
    """Linear map plus a zero-initialised MLP, then scale and shift: (..., d_z) -> (..., d_out).

    The closed-form fit sets the linear map, the scale and the shift; the MLP starts at zero and learns what is not
    linear.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, d_z: int, d_out: int, hidden: int = 0):
        super().__init__()
        self.linear = nn.Parameter(torch.randn(d_z, d_out) / d_z**0.5)
        self.register_buffer("scale", torch.ones(d_out))
        self.register_buffer("shift", torch.zeros(d_out))
        self.mlp: nn.Module | None = None
        if hidden:
            out = nn.Linear(hidden, d_out, bias=False)
            nn.init.zeros_(out.weight)
            self.mlp = nn.Sequential(nn.Linear(d_z, hidden), nn.GELU(), out)

    def forward(self, z: Tensor) -> Tensor:
        y = z @ self.linear
        if self.mlp is not None:
            y = y + self.mlp(z)
        return y * self.scale + self.shift
