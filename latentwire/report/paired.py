"""What sets one run's answers apart from another's, question by question. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentwire.core.intervals import estimate
from latentwire.core.json_files import mapping_at, read_json, read_jsonl
from latentwire.core.names import PREDICTIONS, RESULTS

MODE = "latent"


def paired_differences(folder: Path, other: Path) -> dict[str, dict[str, Any]]:
    """Receiver -> F1 and NLL a token of the answers in `folder` less those in `other`, with paired 95 % intervals.

    Only receivers that both runs have, on the same model, and measured from latents. Empty where one run is not
    evaluated yet, where they were asked other questions or on other passages, or where their predictions.jsonl is older
    than the NLL in it or has one that was no number.
    """
    files = [run / name for run in (folder, other) for name in (RESULTS, PREDICTIONS)]
    if not all(path.is_file() for path in files):
        return {}
    results = [read_json(run / RESULTS) for run in (folder, other)]
    data = [mapping_at(one, "manifest").get("data") for one in results]
    if data[0] != data[1] and None not in data:
        return {}
    receivers = [list(one["receivers"]) for one in results]
    ours, theirs = (read_jsonl(run / PREDICTIONS) for run in (folder, other))
    if [(row["id"], row["question"]) for row in ours] != [(row["id"], row["question"]) for row in theirs]:
        return {}
    passages = [row["passage"] for row in ours]
    found = {}
    for name in receivers[0]:
        if name not in receivers[1]:
            continue
        pairs = [(a[name].get(MODE, {}), b[name].get(MODE, {})) for a, b in zip(ours, theirs, strict=True)]
        # Tokens of one answer are others where another model stands behind the name.
        if all(None not in (a.get("nll"), b.get("nll")) and a["tokens"] == b["tokens"] for a, b in pairs):
            found[name] = _difference(pairs, passages)
    return found


def _difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]], passages: list[int]) -> dict[str, Any]:
    f1 = [a["f1"] - b["f1"] for a, b in pairs]
    nll, tokens = [a["nll"] - b["nll"] for a, b in pairs], [a["tokens"] for a, _ in pairs]
    return estimate("f1", f1, passages) | estimate("nll_per_token", nll, passages, tokens)
