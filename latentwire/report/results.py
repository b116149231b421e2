"""Files of results, read with care. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latentwire.core.errors import LatentWireError
from latentwire.core.json_files import read_object


def read_results(path: Path) -> dict[str, Any]:
    """An eval.json of the schema that this version writes."""
    results = read_object(path)
    if results.get("schema") != 1 or "receivers" not in results:
        raise LatentWireError(f"{path}: not an eval.json of schema 1")
    return results


@contextmanager
def checked(path: Path | str) -> Iterator[None]:
    """One clear line, with the file's name, where what is read inside is not in the form that a run writes."""
    try:
        yield
    except KeyError as error:
        raise LatentWireError(f"{path}: {error} is missing in it") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise LatentWireError(f"{path}: not in the form that a run writes: {error}") from error
