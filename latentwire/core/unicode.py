"""Texts that can be written as UTF-8, which not every Python string can."""

from __future__ import annotations

from latentwire.core.errors import DataError, LatentWireError


def utf8(text: str, what: str, error: type[LatentWireError] = DataError) -> bytes:
    """The UTF-8 bytes of a text; `error`, in one line that begins with `what`, for one that holds half a character.

    JSON can escape such halves (lone surrogates), and so can arguments of a command that were no UTF-8.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as found:
        raise error(f"{what} is not valid Unicode: {found.reason} at character {found.start}") from None
