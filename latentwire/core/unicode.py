"""Texts and UTF-8: not every Python string can be written as it, and not every file is it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from latentwire.core.errors import DataError, LatentWireError


def utf8(text: str, what: str, error: type[LatentWireError] = DataError) -> bytes:
    """The UTF-8 bytes of a text; `error`, in one line that begins with `what`, for one that holds half a character.

    JSON can escape such halves (lone surrogates), and so can arguments of a command that were no UTF-8.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as found:
        raise error(f"{what} is not valid Unicode: {found.reason} at character {found.start}") from None


@contextmanager
def reading(where: str, error: type[LatentWireError] = DataError) -> Iterator[None]:
    """What reads a UTF-8 text: `error`, in one line that begins with `where`, where it cannot be had or is none."""
    try:
        yield
    except FileNotFoundError as found:
        raise error(f"{where}: no such file") from found
    except OSError as found:
        raise error(f"{where}: could not be read: {found.strerror or found}") from found
    except UnicodeDecodeError as found:
        raise error(f"{where}: not a UTF-8 text: {found.reason}") from None
