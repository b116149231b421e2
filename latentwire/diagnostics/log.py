"""What diagnostics.jsonl says of a run that was cut off and went on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from latentwire.core.errors import LatentWireError
from latentwire.core.json_files import read_jsonl


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records without steps that a resumed run did again: of those the last ones count.

    LatentWireError, in one line, for a record that no run writes.
    """
    kept: list[dict[str, Any]] = []
    first: dict[str, float] = {}  # the earliest step of each stage so far, from the end on
    for record in reversed(read_jsonl(path)):
        stage = record.get("stage")
        if not isinstance(stage, str):
            raise LatentWireError(f"{path}: a line whose stage is no text: {stage!r}")
        if "step" in record:
            if not isinstance(record["step"], int | float):
                raise LatentWireError(f"{path}: a line of {stage} whose step is no number: {record['step']!r}")
            if record["step"] >= first.get(stage, math.inf):
                continue
            first[stage] = record["step"]
        kept.append(record)
    return kept[::-1]
