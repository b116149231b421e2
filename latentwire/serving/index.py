"""A corpus as a data set of messages: searched by words, answered from without its texts.

DIR/wires/00000.parquet ...   the documents' messages (index_files.py)
DIR/bm25/                     word statistics (words.py); no texts
DIR/index.json                what it was made with; written last, and missing while the index is being made

`build_index` in build_index.py makes one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from latentwire.core.errors import DataError
from latentwire.core.json_files import read_object
from latentwire.model.receiver import Receiver, Reply
from latentwire.serving.index_files import read_document
from latentwire.serving.words import load_words, words_of
from latentwire.wire.message import Wire

ABOUT = "index.json"
"""What an index tells of itself."""
KEYS = {"documents", "sender"}
"""What every index.json has."""


class Hit(NamedTuple):
    """A document that was found: its id, its BM25 score, its messages."""

    id: str
    score: float
    message: tuple[Wire, ...]


class Index:
    """A finished index; DataError where there is none or it was updated since, LatentWireError where its files are
    damaged."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / ABOUT).is_file():
            raise DataError(f"{folder}: no finished index there (latentwire index makes one, or goes on with it)")
        self._opened = _stamp(self.folder / ABOUT)
        self.info = _about(self.folder / ABOUT)
        self._statistics = load_words(self.folder / "bm25")

    def __len__(self) -> int:
        return int(self.info["documents"])

    @contextmanager
    def _as_opened(self) -> Iterator[None]:
        """DataError where what the block read, or failed to read, may be that of a later index."""
        try:
            yield
        finally:
            if _stamp(self.folder / ABOUT) != self._opened:  # it goes before any other file is changed
                raise DataError(f"{self.folder}: the index has changed since it was opened; open it again")

    def search(self, query: str, k: int = 1) -> list[Hit]:
        """The k documents that a query's words speak for most, best first; fewer where fewer share a word with it."""
        words = words_of([query])
        with self._as_opened():
            if not self._statistics.get_tokens_ids(words[0]):
                return []
            found, scores = self._statistics.retrieve(
                words, k=min(k, len(self)), show_progress=False, backend_selection="numpy"
            )
        best = [(int(number), float(score)) for number, score in zip(found[0], scores[0], strict=True) if score > 0]
        return [Hit(name, score, message) for n, score in best for name, message in [self.document(n)]]

    def document(self, number: int) -> tuple[str, tuple[Wire, ...]]:
        """Id and messages of a document by its place in the corpus."""
        with self._as_opened():
            return read_document(self.folder, number)


def _about(path: Path) -> dict[str, Any]:
    """An index.json; DataError where it is not that of an index."""
    info = read_object(path, DataError)
    if not info.keys() >= KEYS:
        raise DataError(f"{path}: not that of an index")
    return info


def _stamp(path: Path) -> tuple[int, int] | None:
    """What tells a file from a later one of its name; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def answer_from(
    index: Index, receiver: Receiver, question: str, k: int = 1, max_new_tokens: int = 24
) -> tuple[Reply | None, list[Hit]]:
    """A receiver's answer from the messages of the k best documents, read as one text, and the documents.

    Of messages whose text is read, these stand in lines of their own. None where no document shares a word with the
    question. WireError where the messages are not for the receiver.
    """
    hits = index.search(question, k)
    return answer_from_hits(receiver, hits, question, max_new_tokens), hits


def answer_from_hits(receiver: Receiver, hits: Sequence[Hit], question: str, max_new_tokens: int = 24) -> Reply | None:
    """A receiver's answer from the messages of documents, read as one text; None where there is none.

    ModelError where they are longer than its window, WireError where they are not for it.
    """
    message = [wire for hit in hits for wire in hit.message]
    return receiver.answer(message, question, max_new_tokens) if message else None
