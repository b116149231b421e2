"""What diagnostics.jsonl says of a run that was cut off and went on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def once(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without steps that a resumed run did again: of those the last ones count."""
    kept: list[dict[str, Any]] = []
    first: dict[tuple[Any, Any], float] = {}  # the earliest step so far, from the end on
    for record in reversed(records):
        if "step" in record:
            key = record.get("stage"), record.get("receiver")
            if record["step"] >= first.get(key, math.inf):
                continue
            first[key] = record["step"]
        kept.append(record)
    return kept[::-1]
