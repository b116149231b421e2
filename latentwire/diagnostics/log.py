"""What diagnostics.jsonl says of a run that was cut off and went on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def once(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records without steps that a resumed run did again: of those the last ones count."""
    kept: list[dict[str, Any]] = []
    first: dict[Any, float] = {}  # the earliest step of each stage so far, from the end on
    for record in reversed(records):
        if "step" in record:
            stage = record.get("stage")
            if record["step"] >= first.get(stage, math.inf):
                continue
            first[stage] = record["step"]
        kept.append(record)
    return kept[::-1]
