"""What a reader is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentwire.backbone.context import Context
from latentwire.backbone.lm import LanguageModel
from latentwire.reader.generator import Generator


class Statistics(NamedTuple):
    """Mean and standard deviation of what a receiver knows, each (d_out,); `groups` (d_out,) share one deviation."""

    mean: Tensor
    std: Tensor
    groups: Tensor


class Reader(nn.Module, ABC):
    """Brings latents (batch, M, d_z) into one receiver as a `Context` of head + M positions.

    The *head* is the constant beginning of every prompt: BOS, or what the chat template puts before the content.
    """

    generator: Generator

    @abstractmethod
    def targets(self, lm: LanguageModel, ids: Tensor, mask: Tensor, phase_tokens: Tensor) -> Tensor:
        """What the generator should give for a known text: (batch, M, d_out). The closed form regresses to it.

        ids: (batch, head + T) right-padded, head first; phase_tokens: (batch, phases, M), indices into ids.
        """

    @abstractmethod
    def target_groups(self) -> Tensor:
        """(d_out,) group of each target number; groups are scaled to equal variance in the closed form."""

    def target_phases(self) -> Tensor:
        """(d_out,) the phase of its window from which each target number comes; -1 where it comes from all of it."""
        return torch.full_like(self.target_groups(), -1)

    @abstractmethod
    def context(self, lm: LanguageModel, values: Tensor, counts: Tensor, opening: Tensor | None = None) -> Context:
        """The context from generated values or targets (batch, M, d_out); counts: (batch,) latents of each row.

        opening: what `opening` gives for text that stands between the head and the latents of every row.
        """

    @abstractmethod
    def opening(self, lm: LanguageModel, head: Sequence[int], ids: Sequence[int]) -> Tensor:
        """Token ids behind the head's, as the receiver reads them, in the form that the reader keeps the head in."""

    @abstractmethod
    def reset_head(self, lm: LanguageModel, head: list[int]) -> None:
        """Read the constant head again, after the receiver's weights have changed."""

    def fitted(self) -> None:
        """Called when the closed form has set the generator: its scale and shift are the targets' statistics."""
        return

    def generate(self, z: Tensor, counts: Tensor) -> Tensor:
        """What is generated from latents (batch, M, d_z), counts[i] of them in row i: (batch, M, d_out)."""
        return self.generator(z, counts)

    def calibrate(self, values: Tensor) -> Tensor:
        """What the receiver is given of generated values or targets (batch, M, d_out), in the same shape."""
        return values

    # ---- what losses compare with ----------------------------------------------------------------------------------

    @abstractmethod
    def known_statistics(self, lm: LanguageModel) -> Statistics:
        """Statistics that calibrated values should have to look like what the receiver knows."""

    @abstractmethod
    def expected_squares(self) -> Tensor:
        """(d_out,) mean squares that calibrated values should have."""

    @abstractmethod
    def parts(self, values: Tensor) -> Tensor:
        """The part of calibrated values (..., d_out) in which single tokens are known, by head: (..., heads, d)."""

    @abstractmethod
    def parts_of_tokens(self, lm: LanguageModel, ids: Tensor) -> Tensor:
        """What the receiver itself makes of single tokens (n,) in that part: (n, heads, d)."""


def behind_head(head: Tensor, body: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Put constant head rows (H, ...) before each row's first counts[i] of body (batch, M, ...), left-padded.

    Returns the sequence (batch, H + M, ...) and its mask (batch, H + M).
    """
    batch, longest = body.shape[:2]
    n = head.shape[0]
    sequence = torch.cat([head.to(body.dtype).expand(batch, *head.shape), body], 1)
    gap = longest - counts[:, None]
    place = torch.arange(n + longest, device=body.device)[None]
    mask = place >= gap
    index = (place - gap).clamp(min=0)
    return sequence[torch.arange(batch, device=body.device)[:, None], index], mask
