"""Texts to compress, from folders, lines, JSONL and Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentwire.core.errors import DataError, one_line
from latentwire.core.unicode import reading

TEXT_FILES = (".txt", ".md", ".rst")
"""Files of a folder that are taken as texts."""
JSON_FILES = (".jsonl", ".ndjson")
ROW_FILES = (*JSON_FILES, ".parquet")
"""Files of which every row is a document."""


@dataclass(frozen=True)
class Document:
    """A text, and the name under which it is found again."""

    id: str
    text: str


def read_documents(
    path: Path, *, lines: bool = False, text_key: str = "text", id_key: str = "id"
) -> Iterator[Document]:
    """The documents of a folder (text files at any depth, by name), of a .jsonl or .parquet file, or of a text file.

    Those of JSONL and Parquet are named by `id_key` or, without one, by their number from 1; files by their path below
    the folder. lines: every line of a text file is a document, named by its number. Blank texts are left out.
    DataError, with the file and the line or row, where something else is found, or no text at all.
    """
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in TEXT_FILES and p.is_file()]
        named = [(p, p.relative_to(path).as_posix()) for p in files]
    elif path.is_file():
        named = [(path, path.name)]
    else:
        raise DataError(f"{path}: no such file or folder")
    empty = True
    for file, name in named:
        if file.suffix.lower() in JSON_FILES:
            found = _of_rows(file, _json_lines(file), text_key, id_key)
        elif file.suffix.lower() == ".parquet":
            found = _of_rows(file, _parquet_rows(file, text_key, id_key), text_key, id_key)
        elif lines:
            before = f"{name}:" if path.is_dir() else ""
            found = (Document(f"{before}{n}", line.strip()) for n, line in enumerate(_text_lines(file), 1))
        else:
            found = iter([Document(name, "".join(_text_lines(file)))])
        for document in found:
            if document.text.strip():
                empty = False
                yield document
    if empty:
        where = f", in {', '.join(TEXT_FILES)} files" if path.is_dir() else ""
        raise DataError(f"{path}: no text in it{where}")


def _text_lines(file: Path) -> Iterator[str]:
    with reading(str(file)), open(file, encoding="utf-8-sig", newline="") as stream:  # a text keeps its line ends
        yield from stream


def _json_lines(file: Path) -> Iterator[Any]:
    for number, line in enumerate(_text_lines(file), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{file}: line {number}: not valid JSON: {error}") from None


def _parquet_rows(file: Path, *keys: str) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
        columns = [key for key in keys if key in table.schema_arrow.names]
        for batch in table.iter_batches(1024, columns=columns):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file}: could not be read: {one_line(error)}") from error


def _of_rows(file: Path, rows: Iterator[Any], text_key: str, id_key: str) -> Iterator[Document]:
    for number, row in enumerate(rows, 1):
        text = row.get(text_key) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise DataError(f"{file}: row {number}: no text under {text_key!r}")
        name = row.get(id_key)
        yield Document(str(number if name is None else name), text)
