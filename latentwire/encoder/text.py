"""A text as the sender reads it, and batches of such texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from latentwire.encoder import windows
from latentwire.encoder.windows import Span


@dataclass(frozen=True)
class SenderText:
    """A text for the sender, cut into the N windows to which receivers align their own tokens.

    ids: its tokens, special ones included; offsets: the characters of each; tokens: how many without special ones;
    starts: the windows' first characters; phase_tokens: (phases, N) indices into ids; latents: M, as many as the sender
    makes of it. M is N, except where latents are set aside for single receivers: there N is what one of them reads.
    choose: tells which tokens are read, where not all are; across: from the whole text rather than window by window;
    before: how many special tokens stand before its own.
    """

    text: str
    ids: list[int]
    offsets: list[Span]
    tokens: int
    starts: tuple[int, ...]
    phase_tokens: list[list[int]]
    latents: int
    choose: Callable[[SenderText], list[list[int]]] | None = field(default=None, compare=False, repr=False)
    across: bool = False
    before: int = 0

    @cached_property
    def chosen(self) -> list[list[int]] | None:
        """(keep, N) indices into ids of the tokens that are read for each window; None where all of its own are.

        The sender's model has to read the text for it, by itself: near ties must not depend on other texts in a batch.
        """
        return self.choose(self) if self.choose else None

    @property
    def is_chosen(self) -> bool:
        """Whether `chosen` is known, or nothing is to be chosen."""
        return self.choose is None or "chosen" in self.__dict__

    def remember(self, chosen: list[list[int]]) -> None:
        """Take up a choice that came with another reading of the text by itself."""
        self.__dict__.setdefault("chosen", chosen)

    def follow(self, offsets: Sequence[Span]) -> list[list[int]]:
        """(phases, N) the tokens of another tokenizer, given by character spans, that stand for those that are read."""
        if self.chosen is None:
            return windows.align(self.starts, offsets, len(self.phase_tokens))
        return windows.follow([[self.offsets[token] for token in row] for row in self.chosen], offsets)

    @property
    def read_spans(self) -> list[list[Span]] | None:
        """For each window the characters of the tokens that are read, in their order; None where all are."""
        if self.chosen is None:
            return None
        return [[self.offsets[token] for token in dict.fromkeys(window)] for window in zip(*self.chosen, strict=True)]

    @property
    def spans(self) -> list[Span]:
        """The characters of each window, (first, end). Together they are the whole text.

        Where tokens are chosen from the whole text, a window ends where the first token that is read for
        the next one begins.
        """
        starts = self.starts
        if self.across and self.chosen is not None:
            starts = tuple(self.offsets[min(window)][0] for window in zip(*self.chosen, strict=True))
        return list(pairwise((0, *starts[1:], len(self.text))))

    @property
    def own_tokens(self) -> range:
        """Indices into ids of its tokens, without the special ones around them."""
        return range(self.before, self.before + self.tokens)


def shift(table: list[list[int]], by: int) -> list[list[int]]:
    """Indices into tokens that have `by` others before them."""
    return [[i + by for i in row] for row in table]


def by_window(table: Sequence[Sequence[int]]) -> list[int]:
    """A table (phases, M) window by window: M * phases numbers."""
    return [place for window in zip(*table, strict=True) for place in window]


def stack_phases(tables: Sequence[list[list[int]]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Right-pad tables (phases, M_i) to (batch, phases, M), and the counts M_i (batch,)."""
    counts = [len(t[0]) for t in tables]
    out = torch.zeros(len(tables), len(tables[0]), max(counts), dtype=torch.long)
    for row, table in enumerate(tables):
        out[row, :, : counts[row]] = torch.tensor(table)
    return out.to(device), torch.tensor(counts, device=device)
