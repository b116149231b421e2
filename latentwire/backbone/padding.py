"""Rows of token ids as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def positions_of(mask: Tensor) -> Tensor:
    """Positions of left-padded tokens (batch, K), as `generate` counts them."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Left-pad rows of ids: ids (batch, longest) and mask (batch, longest)."""
    return _pad(rows, pad, device, "left")


def pad_right(rows: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Right-pad rows of ids: ids (batch, longest) and mask (batch, longest)."""
    return _pad(rows, pad, device, "right")


def row_mask(
    counts: Sequence[int] | Tensor, longest: int | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Mask (batch, longest) of right-padded rows: True at the first counts[i] of row i; by default they are padded to
    the longest. It is where counts are, or on `device`."""
    counts = torch.as_tensor(counts, device=device)
    places = torch.arange(int(counts.max()) if longest is None else longest, device=counts.device)
    return places[None] < counts[:, None]


def _pad(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device | str, side: Literal["left", "right"]
) -> tuple[Tensor, Tensor]:
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    real = [torch.ones(len(row), dtype=torch.bool) for row in rows]
    padded = pad_sequence(ids, True, pad, side), pad_sequence(real, True, False, side)
    return padded[0].to(device), padded[1].to(device)
