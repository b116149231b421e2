"""The Parquet files in which an index keeps ids, digests and messages of its documents: DIR/wires/00000.parquet ...

A file and its documents are a shard. What its messages were made with is in the file's metadata.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from latentwire.core.atomic import write_bytes
from latentwire.core.batches import batched
from latentwire.core.errors import DataError, WireError, one_line
from latentwire.data.documents import Document
from latentwire.wire.message import Wire, read_texts

SHARD = 256
"""Documents of a shard: what is lost at most when a build is stopped, and how far a document may move and be kept."""
ROW_GROUP = 16
"""Documents that are read from a file together."""
COLUMNS = ("id", "digest", "bytes", "wire")


def sharded(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """The documents of each shard."""
    return batched(documents, SHARD)


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard in the folder of an index."""
    return folder / "wires" / f"{number:05d}.parquet"


def digest(text: str) -> bytes:
    """By what the message of a text is found again: its SHA-256."""
    return hashlib.sha256(text.encode()).digest()


def write_shard(
    path: Path, documents: Sequence[Document], messages: Sequence[bytes], made_with: Mapping[str, str]
) -> None:
    """Write a file: each document with its messages, one behind the other."""
    columns = {
        "id": pyarrow.array([document.id for document in documents], pyarrow.string()),
        "digest": pyarrow.array([digest(document.text) for document in documents], pyarrow.binary(32)),
        "bytes": pyarrow.array([len(message) for message in messages], pyarrow.int64()),
        "wire": pyarrow.array(messages, pyarrow.binary()),
    }
    table = pyarrow.table(columns).replace_schema_metadata(made_with)
    file = io.BytesIO()
    parquet.write_table(table, file, row_group_size=ROW_GROUP, compression="none", use_dictionary=False)
    write_bytes(path, file.getvalue())


def read_sizes(path: Path, documents: Sequence[Document], made_with: Mapping[str, str]) -> list[int] | None:
    """Bytes of each document's messages in a file, None where it does not hold these documents, made like this."""
    found = _read(path, made_with, ["id", "digest", "bytes"])
    if found is None:
        return None
    ids, digests, sizes = found
    same = ids == [document.id for document in documents] and digests == [digest(d.text) for d in documents]
    return sizes if same else None


def read_messages(path: Path, made_with: Mapping[str, str]) -> dict[bytes, bytes]:
    """The messages in a file by the digest of their text; none where it was not made like this."""
    digests, messages = _read(path, made_with, ["digest", "wire"]) or ([], [])
    return dict(zip(digests, messages, strict=True))


def _read(path: Path, made_with: Mapping[str, str], columns: Sequence[str]) -> list[list[Any]] | None:
    """Columns of a file, None where there is none that was made like this."""
    try:
        file = parquet.ParquetFile(path)
        known = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
        table = file.read(list(columns))
        return [table[name].to_pylist() for name in columns] if known == made_with else None
    except (OSError, KeyError, pyarrow.ArrowException):  # not there, or not one of ours
        return None


def read_document(folder: Path, number: int) -> tuple[str, tuple[Wire, ...]]:
    """Id and messages of a document by its place in the corpus; DataError where they cannot be read."""
    shard, row = divmod(number, SHARD)
    path = shard_path(folder, shard)
    try:
        group = parquet.ParquetFile(path).read_row_group(row // ROW_GROUP, ["id", "wire"])
        name, data = (group[column][row % ROW_GROUP].as_py() for column in ("id", "wire"))
    except (OSError, LookupError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: could not be read: {one_line(error)}") from error
    try:
        (message,) = read_texts(io.BytesIO(data))
    except (TypeError, ValueError, WireError) as error:
        raise DataError(f"{path}: document {name!r}: not the messages of one text: {error}") from error
    return name, message
