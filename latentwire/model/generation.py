"""Answers behind a context: greedy ones, and several candidates for one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from latentwire.backbone.context import Context
from latentwire.backbone.lm import LanguageModel
from latentwire.backbone.padding import pad_left, row_mask
from latentwire.data.prompts import PromptFormat
from latentwire.model.consensus import ODDS, Candidate

TOGETHER = 8
"""Tokens after which answers that have ended leave the batch of those that are generated together."""
RowWatch = Callable[[int, str], bool]
"""Sees the number of a row and its answer so far after each token; True ends the row."""


class Generation(NamedTuple):
    """What it takes to go on from a context: the model, its prompt, and what features do while it reads
    (`ContextReader.reading`). The contexts' caches are used up."""

    lm: LanguageModel
    prompt: PromptFormat
    reading: Callable[[Context], AbstractContextManager[None]]

    @torch.no_grad()
    def greedy(
        self, context: Context, tails: Sequence[list[int]], max_new_tokens: int, watch: RowWatch | None = None
    ) -> list[str]:
        """One answer for each row of a context."""
        ids, mask = pad_left(tails, self.lm.pad_id, self.lm.device)
        tokens, _ = self._go_on(context, ids, mask, max_new_tokens, watch=watch)
        return [self.prompt.read(row) for row in tokens.tolist()]

    @torch.no_grad()
    def candidates(
        self, context: Context, tails: Sequence[list[int]], max_new_tokens: int, count: int
    ) -> list[list[Candidate]]:
        """Up to `count` answers for each row of a context: its likeliest first tokens, the best first, each continued
        greedily (Wang and Zhou 2024, arXiv 2402.10200)."""
        lm = self.lm
        ids, mask = pad_left(tails, lm.pad_id, lm.device)
        with self.reading(context):
            asked, hidden = lm.read_on(context, ids, mask)
        with lm.autocast():
            logits = lm.logits(hidden[:, -1])
        best, first = logits.log_softmax(-1).topk(min(count, logits.shape[-1]))
        likely = best >= best[:, :1] - math.log(ODDS)  # (batch, count)
        row_of = likely.nonzero()[:, 0]  # the row that each candidate is an answer to
        tokens, logp = first[likely][:, None], best[likely][:, None]  # (candidates, new)
        open_ended = (~self._stops(tokens[:, 0])).nonzero()[:, 0]
        if max_new_tokens > 1 and len(open_ended):
            given = tokens[open_ended]
            more, scores = self._go_on(
                asked.rows(row_of[open_ended]), given, torch.ones_like(given), max_new_tokens - 1, scored=True
            )
            width = (0, more.shape[1])
            tokens, logp = F.pad(tokens, width, value=lm.pad_id), F.pad(logp, width)
            tokens[open_ended, 1:], logp[open_ended, 1:] = more, scores
        answers = [row[: self.prompt.length(row)] for row in tokens.tolist()]
        said = row_mask(list(map(len, answers)), tokens.shape[1], tokens.device)
        scores_of = logp.masked_fill(~said, 0).sum(1).tolist()
        made = iter(map(Candidate, map(self.prompt.read, answers), scores_of))
        return [list(islice(made, several)) for several in likely.sum(1).tolist()]

    def _go_on(
        self,
        context: Context,
        ids: Tensor,
        mask: Tensor,
        most: int,
        scored: bool = False,
        watch: RowWatch | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Greedy tokens (batch, new) behind left-padded ones (batch, Q), and their log-probabilities if asked for.

        Rows that have ended leave the batch, a few tokens later: most answers are short, and few are long.
        """
        lm = self.lm
        tokens = ids.new_full((len(ids), most), lm.pad_id)
        logp = torch.zeros(len(ids), most, device=ids.device)
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)  # by `watch`
        going = torch.arange(len(ids), device=ids.device)  # rows that are still in the batch
        done = 0  # tokens that these have

        def seen(new: Tensor) -> list[bool]:
            assert watch is not None
            for row, so_far in zip(going.tolist(), torch.cat([tokens[going, :done], new], 1).tolist(), strict=True):
                # A character may be cut off in its middle: its bytes can be tokens of their own.
                ended[row] |= watch(row, self.prompt.read(so_far).rstrip("\ufffd"))
            return ended[going].tolist()

        if ids.shape[1] > 1:
            with self.reading(context):
                context, _ = lm.read_on(context, ids[:, :-1], mask[:, :-1])
        last = ids[:, -1:]
        while len(going) and done < most:
            scores: list[Tensor] = []
            with self.reading(context):
                new = lm.generate(
                    context,
                    last,
                    torch.ones_like(last),
                    min(TOGETHER, most - done),
                    self.prompt.stop,
                    None if watch is None else seen,
                    scores if scored else None,
                )
            part = slice(done, done + new.shape[1])
            tokens[going, part] = new
            if scored:
                logp[going, part] = torch.stack(scores, 1)
            done = part.stop
            stay = (~self._stops(new).any(1) & ~ended[going]).nonzero()[:, 0]
            context.mask = torch.cat([context.mask, torch.ones_like(new, dtype=torch.bool)], 1)
            context, going, last = context.rows(stay), going[stay], new[stay, -1:]
        return tokens[:, :done], logp[:, :done]

    def _stops(self, tokens: Tensor) -> Tensor:
        """Which tokens end an answer."""
        return torch.isin(tokens, torch.tensor(self.prompt.stop, device=tokens.device))
