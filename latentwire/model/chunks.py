"""Texts of any length in chunks that a sender reads one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from latentwire.encoder.windows import Span

_BREAKS = (r"\n\s*", r"[.!?]\S{0,2}\s+", r"\s+")
"""Where a text is cut: behind a line, else a sentence, else a word."""
_CHARACTERS = 16
"""Characters looked at for each token of a chunk at first; far more than a token has in most texts."""


def split_text(pieces: Iterable[str], limit: int, offsets_of: Callable[[str], Sequence[Span]]) -> Iterator[str]:
    """Chunks of at most `limit` tokens of a text that comes in pieces; together they are the text, to the character.

    offsets_of gives the character spans of a text's tokens. No more than a chunk and the latest piece is held.
    """
    waiting = ""
    for piece in pieces:
        waiting += piece
        while cut := _cut(waiting, limit, offsets_of):
            yield waiting[:cut]
            waiting = waiting[cut:]
    if waiting:
        yield waiting


def _cut(text: str, limit: int, offsets_of: Callable[[str], Sequence[Span]]) -> int:
    """Where a chunk ends that begins at the text's start; 0 where all of the text fits in one."""
    size = _CHARACTERS * limit
    offsets = offsets_of(text[:size])
    while len(offsets) <= limit and size < len(text):
        size *= 2
        offsets = offsets_of(text[:size])
    if len(offsets) <= limit:
        return 0
    end = max(1, offsets[limit][0])
    # In the second half of the chunk, so that cutting at line ends does not leave crumbs.
    half = offsets[limit // 2][0]
    for pattern in _BREAKS:
        breaks = [found.end() for found in re.finditer(pattern, text[:end]) if found.end() > half]
        if breaks:
            return breaks[-1]
    return end
