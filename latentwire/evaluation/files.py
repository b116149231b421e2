"""What an evaluation leaves in its folder."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from latentwire.core.atomic import write_text
from latentwire.core.json_files import write_json, write_jsonl
from latentwire.core.measures import ADAPTER_OF, RIVAL_MODES, SIZES
from latentwire.core.names import PASSAGES, PREDICTIONS, RESULTS, TABLE
from latentwire.evaluation.answering import Answer, Answers


def write_results(folder: Path, results: dict[str, Any], answers: Answers) -> None:
    """Write eval.json, eval.csv, predictions.jsonl and passages.jsonl, each whole or not at all.

    A line of passages.jsonl is a passage and the characters of its windows; predictions.jsonl numbers them from 0, and
    has of each answer the NLL in nats of the first gold answer's tokens.
    """
    rows = []
    for i, question in enumerate(answers.questions):
        row: dict[str, Any] = {"id": question.id, "question": question.text, "answers": list(question.answers)}
        row["passage"] = answers.clusters[i]
        for name, modes in answers.by_mode.items():
            row[name] = {mode: _answered(given[i]) for mode, given in modes.items()}
        if answers.joint:
            row["joint"] = answers.joint[i]
        rows.append(row)
    write_jsonl(folder / PREDICTIONS, rows)
    passages = [
        {"id": i.passage.id, "context": i.passage.context, "windows": i.sent.spans, "read": i.sent.read_spans}
        for i in answers.items
    ]
    write_jsonl(folder / PASSAGES, passages)
    write_text(folder / TABLE, _csv(results))
    write_json(folder / RESULTS, results)


def _answered(answer: Answer) -> dict[str, Any]:
    row: dict[str, Any] = {"prediction": answer.prediction, "f1": answer.f1, "em": answer.em}
    row |= {"nll": round(answer.nll, 4), "tokens": answer.tokens}
    return row if answer.attention is None else row | {"attention": answer.attention}


def _csv(results: dict[str, Any]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    columns = ("f1", "em", "first_token_acc", "nll_per_token")
    head = ["receiver", "mode", "f1", "f1_low", "f1_high", *columns[1:], "compression", "wire_bytes"]
    writer.writerow([*head, "bits_per_dimension", "bits_per_latent", *(f"wire_to_{kind}" for kind in SIZES)])
    for name, receiver in results["receivers"].items():
        for mode in ADAPTER_OF:
            m = receiver.get(mode)
            if m is not None:
                saved = {"latent": receiver["compression"], "token_budget": receiver["compression"], "no_context": ""}
                if mode in RIVAL_MODES:
                    saved[mode] = receiver["positions"]["text"] / m["positions"]
                cost = [saved.get(mode, 1), receiver["bytes"]["wire"] if mode == "latent" else ""]
                rates = [
                    receiver["bits_per_dimension"],
                    receiver["bits_per_latent"],
                    *(receiver["byte_ratios"][kind] for kind in SIZES),
                ]
                rates = rates if mode == "latent" else [""] * len(rates)
                writer.writerow([name, mode, m["f1"], *m["f1_ci"], *(m[c] for c in columns[1:]), *cost, *rates])
    return out.getvalue()
