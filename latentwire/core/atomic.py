"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import ctypes
import glob
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from latentwire.core.errors import LatentWireError

LEFTOVER_SECONDS = 3600
"""Temporary folders that were not written to for so long are what a killed process left."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of linux/fcntl.h and linux/fs.h."""


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LatentWireError(f"{path}: could not be written: {error.strerror or error}") from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file through a temporary one beside it, which then takes its place and keeps who may read it.

    What a link leads to is written, not the link; a pipe or a device, which nothing can take the place of, as it is.
    """
    path = Path(path)
    with _one_line(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(data)
            return
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path, "new")
        try:
            with open(temporary, "xb") as file:
                if path.exists():
                    os.chmod(temporary, path.stat().st_mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def _beside(path: Path, kind: str) -> Path:
    """A hidden name beside a path that nothing has yet."""
    return path.parent / f".{path.name}.{kind}-{secrets.token_hex(4)}"


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
    except (ValueError, RecursionError) as error:
        raise LatentWireError(f"{path}: not valid JSON: {error}") from error


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
    try:
        *lines, _ = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise LatentWireError(f"{path}: could not be read: {getattr(error, 'strerror', None) or error}") from error
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
    with _one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+") as file:
            file.truncate(_end_of_last_line(file))
            file.write(f"{_json_line(value)}\n".encode())


def _end_of_last_line(file: BinaryIO, block: int = 1 << 16) -> int:
    start = file.seek(0, os.SEEK_END)
    while start:
        end, start = start, max(0, start - block)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
    return 0


def _json_line(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def make_folder(path: Path) -> None:
    """Make a folder, where there is none; LatentWireError where no file can be written into it."""
    with _one_line(path):
        path.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path):
            pass


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """A temporary sibling folder that takes the place of `path` when the block succeeds, and vanishes if it fails.

    On Linux there is a whole folder at `path` at every moment, elsewhere none between two renames. Where `path` is a
    link, the folder that it leads to is replaced, not the link.
    """
    path = Path(path)
    with _one_line(path):
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path, "new")
        temporary = _beside(path, "new")
        temporary.mkdir()
    try:
        with _one_line(path):
            yield temporary
            if not path.exists():
                os.replace(temporary, path)
            elif not _exchange(temporary, path):
                _replace(temporary, path)
            _sweep(path, "old")  # what _replace left of a killed process, and not before something is at `path` again
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, as Linux can (renameat2); False where system or disk cannot."""
    if not other.is_dir():
        return False
    try:
        swap = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(swap(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


def _replace(temporary: Path, path: Path) -> None:
    old = _beside(path, "old")
    old.mkdir()
    os.replace(path, old / path.name)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(old / path.name, path)
        os.rmdir(old)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sweep(path: Path, kind: str) -> None:
    """Remove the temporary folders of a path that a killed process left."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{kind}-*"):
        with suppress(OSError):
            if left.stat().st_mtime < time.time() - LEFTOVER_SECONDS:
                shutil.rmtree(left)
