"""Runs of so many items, one after the other: `itertools.batched` of Python 3.12, as lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`, the last one of those that are left."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
