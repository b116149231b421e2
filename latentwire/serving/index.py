"""A corpus as a data set of messages: compressed once, searched by words, answered from without its texts.

DIR/wires/00000.parquet ...   id, digest of the text, messages and their size; PART documents a file
DIR/bm25/                     word statistics (BM25, Robertson et al. 1994, as bm25s keeps them); no texts
DIR/index.json                what it was made with; written last, and missing while the index is being made
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from pyarrow import parquet

from latentwire.checkpoint.index import load_config_of, sender_fingerprint
from latentwire.checkpoint.tensors import read_info
from latentwire.config import Config
from latentwire.core.atomic import write_bytes
from latentwire.core.batches import batched
from latentwire.core.errors import DataError, LatentWireError, ModelError, WireError, one_line
from latentwire.core.hashing import stable_hash
from latentwire.core.json_files import read_json, read_object, write_json
from latentwire.core.names import CODEBOOKS, file_of
from latentwire.core.unicode import utf8
from latentwire.data.documents import Document
from latentwire.model.receiver import Receiver, Reply
from latentwire.model.sender import Sender
from latentwire.serving.words import VERSION, load_words, save_words, words_of
from latentwire.wire.codecs import parse_codec
from latentwire.wire.default import default_codec
from latentwire.wire.message import Wire, read_texts

ABOUT = "index.json"
"""What an index tells of itself."""
PART = 256
"""Documents of a file: what is lost at most when it is stopped, and how far a document may move and be kept."""
GROUP = 16
"""Documents that are read from a file together."""
COLUMNS = ("id", "digest", "bytes", "wire")
OWN = re.compile(
    r"index\.json|wires/(\d{5,}\.parquet)?|bm25/([\w.]+\.index\.(npy|json))?"
    r"|(wires/|bm25/)?(\.[^/]+/?|Thumbs\.db)"  # what a killed process or the system left
)
"""What may stand in the folder of an index."""
KEYS = {"documents", "sender"}
"""What every index.json has."""


class Hit(NamedTuple):
    """A document that was found: its id, its BM25 score, its messages."""

    id: str
    score: float
    message: tuple[Wire, ...]


# ---- making -------------------------------------------------------------------------------------------------------


def recipe(
    folder: Path, codec: str | None = None, text: str = "none", changes: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """What the messages of an index depend on, as `build_index` takes it: a checkpoint's sender, and how it is used.

    codec: default: evaluation.codec; text: "beside" where texts are kept; changes: dotted keys of the checkpoint's
    configuration with other values. ConfigError for one that it does not have, WireError for a codec.
    """
    config = load_config_of(folder, changes)
    elsewhere = {"model", "companion"}  # may lie in other places on other machines
    unused = set() if config.encoder.companion else {"companion_layers", "companion_d_z"}
    form = config.encoder.model_dump(mode="json", exclude=elsewhere | unused) | {"dtype": config.model.dtype}
    others = _other_sections(config)
    if others != _other_sections(load_config_of(folder)):  # as they were trained, the fingerprint tells of them
        form |= others
    out = {
        "sender": sender_fingerprint(folder).hex(),
        "codec": str(parse_codec(codec) if codec else default_codec(config)),
        "text": text,
        "chunk": str(config.data.max_context_tokens),
        "encoder": stable_hash(form),
    }
    codebook = read_info(folder)["files"].get(file_of(f"{CODEBOOKS}{out['codec'].partition(':')[0]}"))
    return out | ({"codebook": codebook["sha256"]} if codebook else {})


def _other_sections(config: Config) -> dict[str, Any]:
    """What a sender depends on in the sections that are not the encoder's own."""
    refined, adapted = config.features.use_latent_refiner, config.features.use_sender_lora
    used = {"queries": True, "byte": True, "latent_refiner": refined, "lora": adapted}
    sections = {name: getattr(config, name).model_dump(mode="json") for name, on in used.items() if on}
    return sections | {"use_latent_refiner": refined, "use_sender_lora": adapted}


class Part(NamedTuple):
    """The documents of one file, and their messages; None where a text has to be encoded."""

    number: int
    rows: list[Document]
    messages: list[bytes | None]


Mapper = Callable[[Callable[[Part], Part], Iterable[Part]], Iterable[Part]]
"""Applies a function to parts, as `map` does, but gives them back in any order. The function may be pickled."""


class Encoding:
    """Fills in the messages of parts. The sender is loaded when the first one has to be made."""

    def __init__(self, load_sender: Callable[[], Sender], codec: str, with_text: bool):
        self.load_sender = load_sender
        self.codec = codec
        self.with_text = with_text
        self.sender: Sender | None = None

    def __call__(self, part: Part) -> Part:
        new = [i for i, message in enumerate(part.messages) if message is None]
        messages = list(part.messages)
        if new:
            self.sender = self.sender or self.load_sender()
            made = _encode(self.sender, [part.rows[i] for i in new], self.codec, self.with_text)
            for i, message in zip(new, made, strict=True):
                messages[i] = message
        return Part(part.number, part.rows, messages)


def build_index(
    documents: Iterable[Document],
    out: Path,
    load_sender: Callable[[], Sender],
    made_with: dict[str, str],
    *,
    with_text: bool = False,
    engine: Mapper = map,
    progress: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """Bring an index up to date with its documents; returns what index.json holds, and how many were encoded anew.

    A file whose documents and `made_with` (what the messages depend on, see `recipe`) are unchanged is kept, so that a
    build that was stopped goes on where it was. Where documents were put in or taken out, files are written anew;
    messages of texts that were in the same file or one beside it are taken over, and the others encoded.
    The sender is loaded only if there is something to encode. engine: who encodes; all files are written here.
    progress: called with the number of documents that are done after each file. DataError where `out` holds anything
    that is no part of an index.
    """
    _check_target(out)
    parts = list(_parts(documents, out))  # before anything is written, as a later one may be refused
    words: list[list[str]] = []
    sizes: dict[int, int] = {}
    encoded = 0

    def stale() -> Iterator[Part]:
        """The files that have to be written anew."""
        nonlocal encoded
        before: dict[bytes, bytes] = {}
        for number, rows in enumerate(parts):
            words.extend(words_of([row.text for row in rows]))
            path, here = _part(out, number), dict[bytes, bytes]()
            found = _sizes(path, rows, made_with)
            if found is None:
                here = _messages(path, made_with)
                known = before | here | _messages(_part(out, number + 1), made_with)
                messages = [known.get(_digest(row.text)) for row in rows]
                encoded += messages.count(None)
                yield Part(number, rows, messages)
            else:
                sizes[number] = sum(found)
                progress(len(rows))
            before = here

    for part in engine(Encoding(load_sender, made_with["codec"], with_text), stale()):
        messages = [message for message in part.messages if message is not None]
        (out / ABOUT).unlink(missing_ok=True)  # only now: what fails before it leaves an older index as it was
        write_bytes(_part(out, part.number), _table(part.rows, messages, made_with))
        sizes[part.number] = sum(map(len, messages))
        progress(len(part.rows))
    if not sizes:
        raise DataError(f"{out}: there is no document to index")
    info = made_with | {"schema": 1, "tokenizer": VERSION, "documents": len(words), "wire_bytes": sum(sizes.values())}
    if not _is_whole(out, info):
        if not any(words):
            raise DataError(f"{out}: no document holds a word to search for")
        (out / ABOUT).unlink(missing_ok=True)
        for left in {*(out / "wires").glob("*.parquet")} - {_part(out, number) for number in sizes}:
            left.unlink()
        save_words(words, out / "bm25")
        write_json(out / ABOUT, info)
    return info | {"encoded": encoded}


def _check_target(out: Path) -> None:
    """DataError where an index would take the place of anything but an earlier one, finished or not."""
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"--out: {out} is a file; an index is a folder")
    folders = [folder for folder in (out, out / "wires", out / "bm25") if folder.is_dir()]
    there = {path.relative_to(out).as_posix() + "/" * path.is_dir(): path for f in folders for path in f.iterdir()}
    for name, path in sorted(there.items()):
        if not OWN.fullmatch(name) or _is_foreign(path):
            raise DataError(f"--out: {out} holds {name}, which is no part of an index; name another folder")


def _is_foreign(path: Path) -> bool:
    """Whether a file with a name of ours is something else; a damaged one of ours is not."""
    try:
        if path.name == ABOUT:
            info = read_json(path)
            return not (isinstance(info, dict) and info.keys() >= KEYS)
        return path.suffix == ".parquet" and tuple(parquet.read_schema(path).names) != COLUMNS
    except (LatentWireError, OSError, pyarrow.ArrowException):
        return False


def _parts(documents: Iterable[Document], out: Path) -> Iterator[list[Document]]:
    """The documents of each file; DataError for what cannot be indexed."""
    names: set[str] = set()
    for rows in batched(documents, PART):
        for row in rows:
            if row.id in names:
                raise DataError(f"{out}: two documents have the id {row.id!r}")
            names.add(row.id)
            for text in (row.id, row.text):
                utf8(text, f"{out}: document {row.id!r}")
        yield rows


def _part(folder: Path, number: int) -> Path:
    return folder / "wires" / f"{number:05d}.parquet"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _read(path: Path, made_with: dict[str, str], columns: Sequence[str]) -> list[list[Any]] | None:
    """Columns of a file, None where there is none that was made like this."""
    try:
        file = parquet.ParquetFile(path)
        known = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
        table = file.read(list(columns))
        return [table[name].to_pylist() for name in columns] if known == made_with else None
    except (OSError, KeyError, pyarrow.ArrowException):  # not there, or not one of ours
        return None


def _sizes(path: Path, rows: Sequence[Document], made_with: dict[str, str]) -> list[int] | None:
    """Bytes of each document's messages in a file, None where it does not hold these documents, made like this."""
    found = _read(path, made_with, ["id", "digest", "bytes"])
    if found is None or found[:2] != [[row.id for row in rows], [_digest(row.text) for row in rows]]:
        return None
    return found[2]


def _messages(path: Path, made_with: dict[str, str]) -> dict[bytes, bytes]:
    """The messages in a file by the digest of their text; none where it was not made like this."""
    digests, messages = _read(path, made_with, ["digest", "wire"]) or ([], [])
    return dict(zip(digests, messages, strict=True))


def _encode(sender: Sender, rows: Sequence[Document], codec: str, with_text: bool) -> list[bytes]:
    """The messages of each document; those of like length are encoded together, so that little is padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].text))
    out = [b""] * len(rows)
    for chosen in batched(order, GROUP):
        try:
            wires = sender.encode_long([rows[i].text for i in chosen], codec, with_text=with_text)
        except ModelError as error:
            raise ModelError(f"documents {', '.join(repr(rows[i].id) for i in chosen)}: {error}") from error
        for i, message in zip(chosen, wires, strict=True):
            out[i] = b"".join(wire.to_bytes() for wire in message)
    return out


def _table(rows: Sequence[Document], messages: Sequence[bytes], made_with: dict[str, str]) -> bytes:
    columns = {
        "id": pyarrow.array([row.id for row in rows], pyarrow.string()),
        "digest": pyarrow.array([_digest(row.text) for row in rows], pyarrow.binary(32)),
        "bytes": pyarrow.array(list(map(len, messages)), pyarrow.int64()),
        "wire": pyarrow.array(messages, pyarrow.binary()),
    }
    table = pyarrow.table(columns).replace_schema_metadata(made_with)
    file = io.BytesIO()
    parquet.write_table(table, file, row_group_size=GROUP, compression="none", use_dictionary=False)
    return file.getvalue()


def _is_whole(out: Path, info: dict[str, Any]) -> bool:
    """Whether an index is finished and has this index.json."""
    try:
        return (out / ABOUT).is_file() and read_json(out / ABOUT) == info and bool(load_words(out / "bm25"))
    except LatentWireError:
        return False


# ---- reading ------------------------------------------------------------------------------------------------------


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
            return self._document(number)

    def _document(self, number: int) -> tuple[str, tuple[Wire, ...]]:
        part, row = divmod(number, PART)
        path = _part(self.folder, part)
        try:
            group = parquet.ParquetFile(path).read_row_group(row // GROUP, ["id", "wire"])
            name, data = (group[column][row % GROUP].as_py() for column in ("id", "wire"))
        except (OSError, LookupError, pyarrow.ArrowException) as error:
            raise DataError(f"{path}: could not be read: {one_line(error)}") from error
        try:
            (message,) = read_texts(io.BytesIO(data))
        except (TypeError, ValueError, WireError) as error:
            raise DataError(f"{path}: document {name!r}: not the messages of one text: {error}") from error
        return name, message


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
