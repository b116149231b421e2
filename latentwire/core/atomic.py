"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import ctypes
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from latentwire.core.errors import LatentWireError

LEFTOVER_SECONDS = 3600
"""Temporary folders that were not written to for so long are what a killed process left."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of linux/fcntl.h and linux/fs.h."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """LatentWireError, in one line, where the block cannot write."""
    try:
        yield
    except OSError as error:
        raise LatentWireError(f"{path}: could not be written: {error.strerror or error}") from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file through a temporary one beside it, which then takes its place and keeps who may read it.

    What a link leads to is written, not the link; a pipe or a device, which nothing can take the place of, as it is.
    """
    path = Path(path)
    with writing(path):
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


def make_folder(path: Path) -> None:
    """Make a folder, where there is none; LatentWireError where no file can be written into it."""
    with writing(path):
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
    with writing(path):
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path, "new")
        temporary = _beside(path, "new")
        temporary.mkdir()
    try:
        with writing(path):
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
