"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from latentwire.core.errors import LatentWireError


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LatentWireError(f"{path}: could not be written: {error.strerror or error}") from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file through a temporary one beside it, which then takes its place."""
    path = Path(path)
    with _one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    write_bytes(path, text.encode())


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


def read_json(path: str | Path) -> Any:
    """Read a JSON file; LatentWireError, in one line, where it is not one."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise LatentWireError(f"{path}: could not be read: {error.strerror or error}") from error
    except ValueError as error:
        raise LatentWireError(f"{path}: not valid JSON: {error}") from error


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, atomically."""
    write_text(path, "".join(f"{_json_line(row)}\n" for row in rows))


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line; LatentWireError, in one line, where it is not one.

    A last line without its end is left out: it is being written now.
    """
    try:
        *lines, last = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise LatentWireError(f"{path}: could not be read: {getattr(error, 'strerror', None) or error}") from error
    rows = []
    for number, line in enumerate([*lines, last], 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            if number > len(lines):
                break
            raise LatentWireError(f"{path}: line {number}: not valid JSON: {error}") from error
        if row is not None:
            if not isinstance(row, dict):
                raise LatentWireError(f"{path}: line {number}: not a JSON object")
            rows.append(row)
    return rows


def append_jsonl(path: str | Path, value: Any) -> None:
    """Append one JSON object as one line."""
    path = Path(path)
    with _one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(_json_line(value) + "\n")


def _json_line(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """A temporary sibling folder that takes the place of `path` when the block succeeds, and vanishes if it fails."""
    path = Path(path)
    with _one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        with _one_line(path):
            yield temporary
            os.chmod(temporary, 0o755)
            old = None
            if path.exists():
                old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
                os.replace(path, old / path.name)
            try:
                os.replace(temporary, path)
            except BaseException:
                if old is not None:
                    os.replace(old / path.name, path)
                    os.rmdir(old)
                raise
            if old is not None:
                shutil.rmtree(old)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
