"""Making an index: a corpus compressed once, and brought up to date where it has changed. index.py reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
from pyarrow import parquet

from latentwire.checkpoint.index import load_config_of, sender_fingerprint
from latentwire.checkpoint.tensors import read_info
from latentwire.config import Config
from latentwire.core.batches import batched
from latentwire.core.errors import DataError, LatentWireError, ModelError
from latentwire.core.hashing import stable_hash
from latentwire.core.json_files import read_json, write_json
from latentwire.core.names import CODEBOOKS, file_of
from latentwire.core.unicode import utf8
from latentwire.data.documents import Document
from latentwire.model.sender import Sender
from latentwire.serving.index import ABOUT, KEYS
from latentwire.serving.index_files import (
    COLUMNS,
    digest,
    read_messages,
    read_sizes,
    shard_path,
    sharded,
    write_shard,
)
from latentwire.serving.words import VERSION, load_words, save_words, words_of
from latentwire.wire.codecs import parse_codec
from latentwire.wire.default import default_codec

BATCH = 16
"""Documents that are encoded together."""
OWN = re.compile(
    r"index\.json|wires/(\d{5,}\.parquet)?|bm25/([\w.]+\.index\.(npy|json))?"
    r"|(wires/|bm25/)?(\.[^/]+/?|Thumbs\.db)"  # what a killed process or the system left
)
"""What may stand in the folder of an index."""


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


# ---- encoding -----------------------------------------------------------------------------------------------------


class Shard(NamedTuple):
    """The documents of one file, and their messages; None where a text has to be encoded."""

    number: int
    documents: list[Document]
    messages: list[bytes | None]


Mapper = Callable[[Callable[[Shard], Shard], Iterable[Shard]], Iterable[Shard]]
"""Applies a function to shards, as `map` does, but gives them back in any order. The function may be pickled."""


class Encoding:
    """Fills in the messages of shards. The sender is loaded when the first one has to be made."""

    def __init__(self, load_sender: Callable[[], Sender], codec: str, with_text: bool):
        self.load_sender = load_sender
        self.codec = codec
        self.with_text = with_text
        self.sender: Sender | None = None

    def __call__(self, shard: Shard) -> Shard:
        new = [i for i, message in enumerate(shard.messages) if message is None]
        messages = list(shard.messages)
        if new:
            self.sender = self.sender or self.load_sender()
            made = _encode(self.sender, [shard.documents[i] for i in new], self.codec, self.with_text)
            for i, message in zip(new, made, strict=True):
                messages[i] = message
        return Shard(shard.number, shard.documents, messages)


def _encode(sender: Sender, documents: Sequence[Document], codec: str, with_text: bool) -> list[bytes]:
    """The messages of each document; those of like length are encoded together, so that little is padding."""
    order = sorted(range(len(documents)), key=lambda i: len(documents[i].text))
    out = [b""] * len(documents)
    for chosen in batched(order, BATCH):
        try:
            wires = sender.encode_long([documents[i].text for i in chosen], codec, with_text=with_text)
        except ModelError as error:
            raise ModelError(f"documents {', '.join(repr(documents[i].id) for i in chosen)}: {error}") from error
        for i, message in zip(chosen, wires, strict=True):
            out[i] = b"".join(wire.to_bytes() for wire in message)
    return out


# ---- making -------------------------------------------------------------------------------------------------------


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
    shards = list(sharded(_checked(documents, out)))  # before anything is written, as a later one may be refused
    if not shards:
        raise DataError(f"{out}: there is no document to index")
    wire_bytes: dict[int, int] = {}  # by shard
    for number, found in enumerate(shards):
        sizes = read_sizes(shard_path(out, number), found, made_with)
        if sizes is not None:
            wire_bytes[number] = sum(sizes)
            progress(len(found))
    stale = set(range(len(shards))) - wire_bytes.keys()
    encoded = 0

    def to_write() -> Iterator[Shard]:
        nonlocal encoded
        for shard in _with_known_messages(shards, stale, out, made_with):
            encoded += shard.messages.count(None)
            yield shard

    for shard in engine(Encoding(load_sender, made_with["codec"], with_text), to_write()):
        messages = [message for message in shard.messages if message is not None]
        (out / ABOUT).unlink(missing_ok=True)  # only now: what fails before it leaves an older index as it was
        write_shard(shard_path(out, shard.number), shard.documents, messages, made_with)
        wire_bytes[shard.number] = sum(map(len, messages))
        progress(len(shard.documents))
    info = made_with | {
        "schema": 1,
        "tokenizer": VERSION,
        "documents": sum(map(len, shards)),
        "wire_bytes": sum(wire_bytes.values()),
    }
    if not _is_whole(out, info):
        _complete(out, shards, info)
    return info | {"encoded": encoded}


def _checked(documents: Iterable[Document], out: Path) -> Iterator[Document]:
    """The documents; DataError for what cannot be indexed."""
    ids: set[str] = set()
    for document in documents:
        if document.id in ids:
            raise DataError(f"{out}: two documents have the id {document.id!r}")
        ids.add(document.id)
        for text in (document.id, document.text):
            utf8(text, f"{out}: document {document.id!r}")
        yield document


def _with_known_messages(
    shards: Sequence[list[Document]], stale: Collection[int], out: Path, made_with: dict[str, str]
) -> Iterator[Shard]:
    """The stale shards, with those messages that were in the same file or one beside it.

    Each is looked up before its own file is written, which may be as soon as it was given out.
    """
    before: dict[bytes, bytes] = {}  # what the file of the last shard held, where that is stale too
    for number, documents in enumerate(shards):
        here: dict[bytes, bytes] = {}
        if number in stale:
            here = read_messages(shard_path(out, number), made_with)
            known = before | here | read_messages(shard_path(out, number + 1), made_with)
            yield Shard(number, documents, [known.get(digest(document.text)) for document in documents])
        before = here


def _is_whole(out: Path, info: dict[str, Any]) -> bool:
    """Whether an index is finished and has this index.json."""
    try:
        return (out / ABOUT).is_file() and read_json(out / ABOUT) == info and bool(load_words(out / "bm25"))
    except LatentWireError:
        return False


def _complete(out: Path, shards: Sequence[list[Document]], info: dict[str, Any]) -> None:
    """Make an index of files with all messages: what is left of earlier ones goes, the words and index.json come."""
    words = [own for documents in shards for own in words_of([document.text for document in documents])]
    if not any(words):
        raise DataError(f"{out}: no document holds a word to search for")
    (out / ABOUT).unlink(missing_ok=True)
    current = {shard_path(out, number) for number in range(len(shards))}
    for left in {*(out / "wires").glob("*.parquet")} - current:
        left.unlink()
    save_words(words, out / "bm25")
    write_json(out / ABOUT, info)


# ---- where it is made ---------------------------------------------------------------------------------------------


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
