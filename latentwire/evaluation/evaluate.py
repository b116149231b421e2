"""One evaluation: answers, measures, files, table."""

from __future__ import annotations

import csv
import io
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from latentwire.backbone.lm import LanguageModel
from latentwire.config import Config
from latentwire.core.atomic import write_text
from latentwire.core.errors import DataError
from latentwire.core.intervals import with_interval
from latentwire.core.json_files import write_json, write_jsonl
from latentwire.core.kept import BASELINES, baseline_of, kept_in_words
from latentwire.core.manifest import run_manifest
from latentwire.data.example import Passage, data_fingerprint
from latentwire.evaluation.answering import Answer, Answers, answer_all, encode_items
from latentwire.evaluation.attention import attention_on_latents
from latentwire.evaluation.efficiency import (
    bits_per_dimension,
    bits_per_latent,
    byte_ratios,
    latency,
    message_bytes,
    positions,
)
from latentwire.evaluation.lossless import lm_bytes
from latentwire.evaluation.modes import EVERY_MODE, MODES, RIVALS, modes_for
from latentwire.evaluation.summary import gained, joint_measures, kept, mean_over_receivers, measure
from latentwire.model.system import LatentWire, check_devices
from latentwire.rivals import versions_of

SCHEMA = 1
BYTES_OF_TEXT = {
    "utf8": "UTF-8",
    "zstd": "zstd -19",
    "packed_ids": "token ids",
    "lm_bytes": "lossless by the sender's model",
}
"""Forms of a text that a message's bytes are compared with."""


def evaluate(
    system: LatentWire,
    passages: Sequence[Passage],
    config: Config,
    *,
    command: Sequence[str] = (),
    quiet: bool = False,
) -> tuple[dict[str, Any], Answers]:
    """Evaluate a system on passages; returns what eval.json holds, and all single answers."""
    if not passages:
        raise DataError("evaluation: no question to evaluate on")
    own = config.evaluation
    versions = versions_of(own.rivals)
    items = encode_items(system, passages, own.codec)
    lossless = lossless_limits(config, passages) if own.lm_bytes else None
    answers = answer_all(
        system,
        items,
        modes_for,
        batch_size=own.batch_size,
        max_new_tokens=own.max_new_tokens,
        report=_silent if quiet else _progress,
    )
    receivers: dict[str, dict[str, Any]] = {}
    for name, receiver in system.receivers.items():
        for i, answer in enumerate(answers.by_mode[name].get("latent", [])[: own.attention_examples]):
            item, question = items[answers.clusters[i]], answers.questions[i]
            answer.attention = attention_on_latents(receiver, item, question, answer.prediction)
        measured = {
            mode: measure(rows, answers.clusters, own.bootstrap)
            | {"tuned": EVERY_MODE[mode].adapter in receiver.adapters}
            for mode, rows in answers.by_mode[name].items()
        }
        for mode in RIVALS.keys() & measured.keys():
            measured[mode]["positions"] = statistics.fmean(a.positions for a in answers.by_mode[name][mode])
        for mode in ("text", "text_tuned", "latent"):
            if mode in measured and own.latency_samples:
                some = items[: own.latency_samples]
                times = latency(system, receiver, MODES[mode], some, own.max_new_tokens, own.codec)
                measured[mode]["latency_s"] = times
        taken = positions(receiver, items)
        receivers[name] = {
            **{mode: measured.get(mode) for mode in MODES},
            **{mode: measured[mode] for mode in RIVALS if mode in measured},
            **_beside(answers.by_mode[name], measured, answers.clusters, own.bootstrap),
            "positions": taken,
            "compression": taken["text"] / taken["latent"],
            "bytes": (means := message_bytes(receiver, items, lossless)),
            "byte_ratios": byte_ratios(means),
            "bits_per_dimension": bits_per_dimension(items),
            "bits_per_latent": bits_per_latent(items),
        }
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "manifest": run_manifest(config.model_dump(mode="json"), command),
        "dataset": config.data.dataset,
        "samples": len(answers.questions),
        "passages": len(items),
        "receivers": receivers,
        "joint": None,
        **{
            mode: mean_over_receivers(answers.by_mode, receivers, mode, answers.clusters, own.bootstrap)
            for mode in ("text", "text_tuned", "latent", "token_budget", *RIVALS)
            if mode in MODES or all(mode in measured for measured in receivers.values())
        },
    }
    results["manifest"]["versions"] |= versions
    results["manifest"]["data"] = data_fingerprint(passages)
    if answers.joint:
        own_answers = {n: [a.prediction for a in modes["latent"]] for n, modes in answers.by_mode.items()}
        golds = [q.answers for q in answers.questions]
        results["joint"] = joint_measures(answers.joint, golds, own_answers, answers.clusters, own.bootstrap)
    return results, answers


def _beside(
    answers: Mapping[str, Sequence[Answer]], measured: Mapping[str, Any], clusters: Sequence[int], resamples: int
) -> dict[str, Any]:
    """What latents keep of the text, read with a LoRA tuned on it where they have one too, and what they gain over as
    many tokens of it; None where one of these was not measured."""
    out: dict[str, Any] = {"kept": None, "gained": None}
    if "latent" not in answers:
        return out
    latent = answers["latent"]
    if text := baseline_of(measured["latent"], {mode: measured.get(mode) for mode in BASELINES}):
        out["kept"] = {"of": text} | kept(latent, answers[text], clusters, resamples)
    if "token_budget" in answers:
        f1, theirs = ([answer.f1 for answer in rows] for rows in (latent, answers["token_budget"]))
        out["gained"] = {"over": "token_budget"} | gained(f1, theirs, clusters, resamples)
    return out


def lossless_limits(config: Config, passages: Sequence[Passage]) -> list[int]:
    """The lossless limit of each passage. The system's own sender may have only the layers that it needs."""
    device = check_devices(config)
    whole = LanguageModel.load(config.encoder.model, dtype=config.model.dtype, device=device)
    return lm_bytes(whole, [passage.context for passage in passages])


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
    write_jsonl(folder / "predictions.jsonl", rows)
    passages = [
        {"id": i.passage.id, "context": i.passage.context, "windows": i.sent.spans, "read": i.sent.read_spans}
        for i in answers.items
    ]
    write_jsonl(folder / "passages.jsonl", passages)
    write_text(folder / "eval.csv", _csv(results))
    write_json(folder / "eval.json", results)


def _answered(answer: Answer) -> dict[str, Any]:
    row: dict[str, Any] = {"prediction": answer.prediction, "f1": answer.f1, "em": answer.em}
    row |= {"nll": round(answer.nll, 4), "tokens": answer.tokens}
    return row if answer.attention is None else row | {"attention": answer.attention}


def _csv(results: dict[str, Any]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    columns = ("f1", "em", "first_token_acc", "nll_per_token")
    head = ["receiver", "mode", "f1", "f1_low", "f1_high", *columns[1:], "compression", "wire_bytes"]
    writer.writerow([*head, "bits_per_dimension", "bits_per_latent", *(f"wire_to_{kind}" for kind in BYTES_OF_TEXT)])
    for name, receiver in results["receivers"].items():
        for mode in EVERY_MODE:
            m = receiver.get(mode)
            if m is not None:
                saved = {"latent": receiver["compression"], "token_budget": receiver["compression"], "no_context": ""}
                if mode in RIVALS:
                    saved[mode] = receiver["positions"]["text"] / m["positions"]
                cost = [saved.get(mode, 1), receiver["bytes"]["wire"] if mode == "latent" else ""]
                rates = [
                    receiver["bits_per_dimension"],
                    receiver["bits_per_latent"],
                    *(receiver["byte_ratios"][kind] for kind in BYTES_OF_TEXT),
                ]
                rates = rates if mode == "latent" else [""] * len(rates)
                writer.writerow([name, mode, m["f1"], *m["f1_ci"], *(m[c] for c in columns[1:]), *cost, *rates])
    return out.getvalue()


def print_table(results: dict[str, Any], console: Console | None = None) -> None:
    """Print one table of all receivers and modes."""
    console = console or Console(width=None if sys.stdout.isatty() else 130)
    title = f"{results['samples']} questions on {results['passages']} passages ({results['dataset']})"
    table = Table(title=title)
    for column in (
        "receiver",
        "reads",
        "F1 [95 %]",
        "EM",
        "first token",
        "NLL/token",
        "positions",
        "bytes",
        "answer s",
    ):
        table.add_column(column, justify="left" if column in ("receiver", "reads") else "right", no_wrap=True)
    for name, receiver in results["receivers"].items():
        for mode in EVERY_MODE:
            m = receiver.get(mode)
            if m is None:
                continue
            where = "latent" if mode == "latent" else "text"
            shown = mode in ("text", "text_tuned", "latent", "embedding_replay")
            taken = m["positions"] if mode in RIVALS else receiver["positions"][where]
            table.add_row(
                name,
                mode if m["tuned"] or EVERY_MODE[mode].adapter is None else f"{mode} (no LoRA)",
                with_interval(m["f1"], m["f1_ci"]),
                f"{m['em']:.3f}",
                f"{m['first_token_acc']:.3f}",
                f"{m['nll_per_token']:.2f}",
                f"{taken:.0f}" if shown or mode in RIVALS else "",
                f"{receiver['bytes']['wire' if mode == 'latent' else 'utf8']:.0f}" if shown else "",
                f"{m['latency_s']['answer']:.2f}" if m["latency_s"] else "",
            )
        table.add_section()
    console.print(table)
    for name, receiver in results["receivers"].items():
        console.print(
            f"{name}: {receiver['compression']:.2f}x fewer positions; wire {receiver['bytes']['wire']:.0f} bytes, "
            f"{receiver['bits_per_latent']:.0f} bits a latent: {', '.join(_ratios(receiver))}"
        )
        if receiver["kept"]:
            console.print(f"{name}: {kept_in_words(receiver['kept'])}{_gain(receiver['gained'])}")
    if results["joint"]:
        j, few = results["joint"], len(results["receivers"]) == 2
        console.print(
            f"{'both' if few else 'all'} together: F1 {with_interval(j['f1'], j['f1_ci'])}, EM {j['em']:.3f}; "
            f"{with_interval(j['gained']['f1'], j['gained']['f1_ci'])} above the better one; "
            f"they agree on {j['agreement']:.0%}, the {'better of both' if few else 'best of them'} has F1 "
            f"{j['oracle_f1']:.3f}"
        )


def _gain(over: dict[str, Any] | None) -> str:
    return "" if over is None else f"; F1 {with_interval(over['f1'], over['f1_ci'])} above {over['over']}"


def _ratios(receiver: dict[str, Any]) -> Iterator[str]:
    for kind, label in BYTES_OF_TEXT.items():
        if (size := receiver["bytes"][kind]) is not None:
            yield f"{receiver['byte_ratios'][kind]:.2f}x {label} ({size:.0f})"


def _silent(what: str, done: int, total: int) -> None:
    pass


def _progress(what: str, done: int, total: int) -> None:
    """One line that is rewritten on a terminal; elsewhere a line for each finished mode."""
    if sys.stderr.isatty():
        print(f"\r  {what}: {done}/{total} questions" + " " * 12, end="\n" if done >= total else "", file=sys.stderr)
    elif done >= total:
        print(f"  {what}: {total} questions", file=sys.stderr, flush=True)
