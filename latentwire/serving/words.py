"""Words of texts, and their statistics for BM25 (Robertson et al. 1994) as bm25s keeps them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import bm25s

from latentwire.core.atomic import atomic_dir
from latentwire.core.errors import DataError

UNSPACED = (
    "\u1100-\u11ff\u3005-\u3007\u3040-\u318f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f"
    "\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff"
)
"""Chinese, Japanese and Korean scripts, where words are not told apart by spaces, or take endings."""
WORD = rf"(?=[{UNSPACED}])\w|[^\W{UNSPACED}]{{2,}}|(?<!\w['\u2019])[^\W{UNSPACED}](?!['\u2019]\w)"
"""A word: one character of these scripts, or letters and digits of others, but not the s of "Mira's"."""
VERSION = 3
"""Of this way to take words; an index that was made with another one takes them anew."""


def words_of(texts: Sequence[str]) -> list[list[str]]:
    """The words of each text in lower case, however its characters are composed (NFKC), without those that are in every
    English text."""
    composed = [unicodedata.normalize("NFKC", text) for text in texts]
    found: list[list[str]] = bm25s.tokenize(
        composed, token_pattern=WORD, stopwords="en", return_ids=False, show_progress=False
    )
    return found


def save_words(words: list[list[str]], folder: Path) -> None:
    """Write the statistics of documents given by their words."""
    statistics = bm25s.BM25()
    statistics.index(words, show_progress=False)
    with atomic_dir(folder) as written:
        statistics.save(written, show_progress=False)


def load_words(folder: Path) -> bm25s.BM25:
    """What `save_words` wrote; DataError where it cannot be read."""
    try:
        return bm25s.BM25.load(folder, mmap=True, show_progress=False)
    except Exception as error:  # whatever may stand in these files in place of what the package wrote
        raise DataError(f"{folder}: its word statistics could not be read: {error}") from error
