"""Files of JSON: written whole, read with care."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from latentwire.core.atomic import write_text, writing
from latentwire.core.errors import LatentWireError
from latentwire.core.unicode import reading

BLOCK = 1 << 16
"""Bytes that are read at once on the way back to the last line's end."""


def dump_json(value: Any) -> str:
    """Indented JSON with a line end, as all files of this project hold it."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """NaN and inf, for which JSON has no word, as null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_text(path, dump_json(value))


def read_json(path: str | Path, error: type[LatentWireError] = LatentWireError, where: str | None = None) -> Any:
    """Read a JSON file; an error of this kind, in one line that begins with `where` or the path, if it is not one."""
    where = where or str(path)
    try:
        with reading(where, error):
            return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: not valid JSON: {problem}") from problem


def read_object(path: str | Path, error: type[LatentWireError] = LatentWireError) -> dict[str, Any]:
    """Read a JSON file that holds an object; an error of this kind, in one line, where it does not."""
    value = read_json(path, error)
    if not isinstance(value, dict):
        raise error(f"{path}: not a JSON object")
    return value


def mapping_at(found: Any, key: str) -> dict[str, Any]:
    """What stands under a key of a JSON value of any form; empty where that is no mapping."""
    inner = found.get(key) if isinstance(found, dict) else None
    return inner if isinstance(inner, dict) else {}


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, atomically."""
    write_text(path, "".join(f"{_json_line(row)}\n" for row in rows))


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line; LatentWireError, in one line, where it is not one.

    A last line without its end is left out: it is being written now.
    """
    with reading(str(path), LatentWireError):
        *lines, _ = Path(path).read_text(encoding="utf-8").split("\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise LatentWireError(f"{path}: line {number}: not valid JSON: {error}") from error
        if row is not None:
            if not isinstance(row, dict):
                raise LatentWireError(f"{path}: line {number}: not a JSON object")
            rows.append(row)
    return rows


def append_jsonl(path: str | Path, value: Any) -> None:
    """Append one JSON object as one line, in place of a last line that was cut off while it was written."""
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            file.truncate(_end_of_last_line(file))
            file.write(f"{_json_line(value)}\n".encode())


def _end_of_last_line(file: BinaryIO) -> int:
    start = file.seek(0, os.SEEK_END)
    while start:
        end, start = start, max(0, start - BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
    return 0


def _json_line(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
