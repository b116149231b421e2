"""The map that every reader starts with: latents to the numbers that the reader needs, standardised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentwire.backbone.padding import row_mask


class Generator(nn.Module):
    """Linear map plus a zero-initialised MLP, then scale and shift: (batch, M, d_z) -> (batch, M, d_out).

    The closed-form fit sets the linear map, the scale and the shift, which are those of what is to be made, and the
    `centre` of the latents, which is zero where the encoder was fitted as well; the MLP starts at zero and learns what
    is not linear, also of so many `neighbours` on each side. With a `rank` the linear map is a product of two thin
    ones. `dropout` falls on the latents, in training.
    """

    scale: Tensor
    shift: Tensor
    centre: Tensor

    def __init__(
        self,
        d_z: int,
        d_out: int,
        hidden: int = 0,
        *,
        neighbours: int = 0,
        rank: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.neighbours = neighbours
        self.dropout = dropout
        self.linear = nn.Parameter(torch.randn(rank or d_z, d_out) / (rank or d_z) ** 0.5)
        self.down = nn.Parameter(torch.randn(d_z, rank) / d_z**0.5) if rank else None
        self.register_buffer("scale", torch.ones(d_out))
        self.register_buffer("shift", torch.zeros(d_out))
        self.register_buffer("centre", torch.zeros(d_z))
        self.mlp: nn.Sequential | None = None
        if hidden:
            out = nn.Linear(hidden, d_out, bias=False)
            nn.init.zeros_(out.weight)
            width = 2 * neighbours + 1
            first = nn.Conv1d(d_z, hidden, width, padding=neighbours) if neighbours else nn.Linear(d_z, hidden)
            self.mlp = nn.Sequential(first, nn.GELU(), out)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        state.setdefault(f"{prefix}centre", torch.zeros_like(self.centre))  # older checkpoints know of none
        super()._load_from_state_dict(state, prefix, *rest)

    @torch.no_grad()
    def set_linear(self, weight: Tensor) -> None:
        """Take up a linear map (n, d_out) of the first n latent dimensions, or its best approximation of lower rank."""
        if self.down is None:
            self.linear.zero_()[: len(weight)] = weight
            return
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        rank = min(self.down.shape[1], len(values))
        self.linear.zero_()[:rank] = values[:rank].sqrt()[:, None] * right[:rank]
        self.down.zero_()[: len(weight), :rank] = left[:, :rank] * values[:rank].sqrt()

    def linear_map(self, n: int | None = None) -> Tensor:
        """What `set_linear` left of a map of the first n latent dimensions, by default all: (n, d_out)."""
        return self.linear[:n] if self.down is None else self.down[:n] @ self.linear

    @torch.no_grad()
    def forget(self, last: int) -> None:
        """Make nothing of the last so many dimensions of latents."""
        self.linear[-last:].zero_()
        if self.mlp is not None:
            assert isinstance(self.mlp[0], nn.Linear | nn.Conv1d)
            self.mlp[0].weight[:, -last:].zero_()

    def forward(self, z: Tensor, counts: Tensor) -> Tensor:
        """Latents (batch, M, d_z), counts[i] of them in row i, to what the reader gives the model for each
        (batch, M, d_out)."""
        z = F.dropout(z - self.centre, self.dropout, training=self.training and torch.is_grad_enabled())
        y = (z if self.down is None else z @ self.down) @ self.linear
        if self.mlp is not None:
            y = y + (self._among_neighbours(z, counts) if self.neighbours else self.mlp(z))
        return y * self.scale + self.shift

    def _among_neighbours(self, z: Tensor, counts: Tensor) -> Tensor:
        """What the MLP makes of latents; before the first one and behind the last one of a row there is nothing."""
        assert self.mlp is not None
        z = z.masked_fill(~row_mask(counts, z.shape[1])[..., None], 0)
        made: Tensor = self.mlp[1:](self.mlp[0](z.mT).mT)
        return made
