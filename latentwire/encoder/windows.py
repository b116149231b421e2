"""Windows: contiguous runs of sender tokens, one behind each latent, and their alignment to other tokenizers.

A window is known to other models by the character at which it starts. A receiver's token belongs to the window in
which its centre lies. `phases` tokens of each window are taken, in order: phase p of a window with n tokens is its
min(n - 1, p * n // phases)-th token, so short and long windows are both covered evenly. Of these, or of the whole text,
a sender may choose the few that score highest: those that are hardest to predict, since a language model fills in the
others best by itself (as in the choice of tokens by surprisal for text prompts, Li et al. 2023, arXiv 2310.06201), or
those that are likely to be asked about.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Span = tuple[int, int]


@dataclass(frozen=True)
class Windows:
    """The windows of one text.

    starts: first character of each window; phase_tokens: (phases, M) indices into the sender's tokens.
    """

    starts: tuple[int, ...]
    phase_tokens: list[list[int]]

    def __len__(self) -> int:
        return len(self.starts)


def split(offsets: Sequence[Span], window: float, latent_len: int | None = None) -> Windows:
    """Cut a text of T sender tokens, given by character spans, into ceil(T / window) windows.

    A fraction is the mean: of windows of 7.5 tokens every other one has 7 and the rest 8. With `latent_len` M, windows
    hold ceil(T / M) tokens instead, which gives at most M windows; `window` stays the number of tokens read from each.
    """
    size = window if latent_len is None else max(1, -(-len(offsets) // latent_len))
    starts = (int(size * i) for i in range(math.ceil(len(offsets) / size)))
    bounds = [
        *(start for start in starts if start < len(offsets)),
        len(offsets),
    ]  # fractions may round
    members = [range(first, end) for first, end in pairwise(bounds)]
    return Windows(tuple(offsets[m[0]][0] for m in members), take_phases(members, math.ceil(window)))


def divide(offsets: Sequence[Span], count: int, phases: int) -> Windows:
    """Cut a text into exactly `count` windows of sizes as equal as can be.

    Where it has fewer tokens than that, some windows are empty and repeat the token before them.
    """
    starts = tuple(offsets[i * len(offsets) // count][0] for i in range(count)) if offsets else ()
    return Windows(starts, align(starts, offsets, phases))


def align(starts: Sequence[int], offsets: Sequence[Span], phases: int) -> list[list[int]]:
    """(phases, M) indices into another tokenizer's tokens, given by character spans; M = len(starts).

    A window in which no token's centre lies repeats the token before it.
    """
    members: list[list[int]] = [[] for _ in starts]
    window = 0
    for token, (first, end) in enumerate(offsets):
        centre = (first + end - 1) / 2
        while window + 1 < len(starts) and centre >= starts[window + 1]:
            window += 1
        members[window].append(token)
    last = 0
    for tokens in members:
        if not tokens:
            tokens.append(last)
        last = tokens[-1]
    return take_phases(members, phases)


def take_phases(members: Sequence[Sequence[int]], phases: int) -> list[list[int]]:
    """(phases, M): the token that stands for each phase of each window."""
    return [[m[min(len(m) - 1, p * len(m) // phases)] for m in members] for p in range(phases)]


def best_of_windows(
    phase_tokens: Sequence[Sequence[int]], scores: Sequence[float], order: Sequence[float], keep: int
) -> list[list[int]]:
    """(keep, M): of the tokens (phases, M) of each window those with the highest scores, highest in order first.

    A token that a short window repeats counts once as long as there are others.
    """
    chosen = []
    for tokens in zip(*phase_tokens, strict=True):
        best = sorted(dict.fromkeys(tokens), key=lambda token: -scores[token])[:keep]
        chosen.append((sorted(best, key=lambda token: -order[token]) * keep)[:keep])
    return [list(row) for row in zip(*chosen, strict=True)]


def best_of_text(
    tokens: Sequence[int], scores: Sequence[float], order: Sequence[float], keep: int, count: int
) -> list[list[int]]:
    """(keep, count): of all tokens of a text the keep * count with the highest scores. Those that follow one another
    share a window, highest in order first.

    A text that has fewer tokens than that is divided evenly, and some are repeated.
    """
    best = sorted(sorted(tokens, key=lambda token: -scores[token])[: keep * count])
    bounds = [len(best) * i // count for i in range(count + 1)]
    chosen = []
    for first, end in pairwise(bounds):
        window = sorted(best[first : max(end, first + 1)], key=lambda token: -order[token])
        chosen.append((window * keep)[:keep])
    return [list(row) for row in zip(*chosen, strict=True)]


def follow(spans: Sequence[Sequence[Span]], offsets: Sequence[Span]) -> list[list[int]]:
    """For each span the token of another tokenizer, given by character spans, in which its centre lies."""
    ends = [end for _, end in offsets]
    return [[min(bisect_right(ends, (a + b - 1) / 2), len(ends) - 1) for a, b in row] for row in spans]
