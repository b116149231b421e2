"""Errors that a user can cause. Each message is one line that names the config path, flag or file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class LatentWireError(Exception):
    """Base of all errors that end in one clear line instead of a traceback."""


class ConfigError(LatentWireError):
    """A configuration file, override or flag is wrong."""


class DataError(LatentWireError):
    """A data set is missing, malformed or empty."""


class ModelError(LatentWireError):
    """A language model is missing, unsupported or used beyond its limits."""


class CheckpointError(LatentWireError):
    """A checkpoint is missing, damaged or made for something else."""


class WireError(LatentWireError):
    """A message is malformed, or not for this reader."""


class TrainingError(LatentWireError):
    """Training cannot go on."""


class Interrupted(TrainingError):
    """Training was stopped by the user; everything is saved."""


@contextmanager
def named(where: str) -> Iterator[None]:
    """An error of the block, with the place where it is in front."""
    try:
        yield
    except LatentWireError as error:
        raise type(error)(f"{where}: {error}") from error


def one_line(error: BaseException, most: int | None = 200) -> str:
    """What an error says, or its kind where it says nothing, without line ends, in so many characters."""
    return " ".join(str(error).split())[:most] or type(error).__name__
