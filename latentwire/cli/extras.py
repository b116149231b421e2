"""Optional packages, which some verbs need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from latentwire.core.errors import ConfigError

EXTRAS = {
    "bm25s": "index",
    "pyarrow": "index",
    "ray": "ray",
    "uvicorn": "serve",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "lm_eval": "lm-eval",
}
"""Module -> the extra of pyproject.toml that brings it."""


@contextmanager
def extras() -> Iterator[None]:
    """Imports of what optional packages serve: ConfigError, with what to type, where one is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (extra := EXTRAS.get(error.name or "")) is None:
            raise
        raise ConfigError(
            f"{error.name} is not installed; get it with, in the checkout: pip install -e '.[{extra}]'"
        ) from None
