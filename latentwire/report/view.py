"""The figures that a report shows, taken from the files of runs: the same for the page and for Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from latentwire.core.measures import ADAPTER_OF, SIZES, baseline_of, mode_label
from latentwire.core.names import PASSAGES, PREDICTIONS, RESULTS
from latentwire.report.artifacts import RunFiles, answers_in
from latentwire.report.results import checked

TIMES = ("encode", "prefill", "first_token", "answer")
BYTES = ("wire", *SIZES)
Row = dict[str, Any]


def scores(runs: Sequence[RunFiles]) -> list[Row]:
    """One row for each run, receiver and mode that was measured."""
    rows = []
    for run in runs:
        with checked(run.folder / RESULTS):
            for name, receiver in run.receivers.items():
                measured = [(mode, m) for mode in ADAPTER_OF if (m := receiver.get(mode)) is not None]
                for mode, m in measured:
                    row = {"run": run.name, "receiver": name, "mode": mode, "label": mode_label(mode, m)}
                    row |= {"f1": m["f1"], "low": m["f1_ci"][0], "high": m["f1_ci"][1], "positions": m.get("positions")}
                    rows.append(row | {key: m[key] for key in ("em", "first_token_acc", "nll_per_token")})
    return rows


def costs(runs: Sequence[RunFiles]) -> list[Row]:
    """What a message costs and what it keeps, one row for each run and receiver."""
    rows = []
    for run in runs:
        with checked(run.folder / RESULTS):
            for name, receiver in run.receivers.items():
                latent = receiver["latent"]
                baseline = latent and baseline_of(latent, receiver)
                text = receiver[baseline]["f1"] if baseline else None
                row = {"run": run.name, "receiver": name, "baseline": baseline}
                row |= {"kept": latent["f1"] / text if text else None, "compression": receiver["compression"]}
                row |= {f"{path}_positions": receiver["positions"][path] for path in ("text", "latent")}
                sizes = {kind: receiver["bytes"].get(kind) for kind in BYTES}
                rows.append(row | sizes | {"bits": receiver.get("bits_per_dimension")})
    return rows


def latencies(runs: Sequence[RunFiles]) -> list[Row]:
    """Median seconds of one question, one row for each run, receiver and mode that was timed."""
    rows = []
    for run in runs:
        with checked(run.folder / RESULTS):
            machine = evaluation_manifest(run).get("cpu")
            for name, receiver in run.receivers.items():
                for mode in ADAPTER_OF:
                    if (m := receiver.get(mode)) is not None and (times := m["latency_s"]):
                        row = {"run": run.name, "receiver": name, "mode": mode, "machine": machine}
                        rows.append(row | {key: times[key] for key in TIMES})
    return rows


def evaluation_manifest(run: RunFiles) -> dict[str, Any]:
    """The manifest of its evaluation, which may have been made later and elsewhere than its training."""
    made: dict[str, Any] = run.results["manifest"] if run.results else {}
    return made


def by_receiver(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of one run and receiver together, in the order in which they come."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["run"], row["receiver"]), []).append(row)
    return list(groups.values())


def stage_of(record: Row) -> str:
    """The stage of a record without its receiver's name: slot_tuning, end_to_end, baseline text, ..."""
    first, *rest = record["stage"].split("/")
    kind = first.split(": ")[-1]  # of an earlier run it is "run 2: baseline"
    return f"{first} {rest[-1]}" if kind == "baseline" else first


def curves(runs: Sequence[RunFiles]) -> dict[str, list[Row]]:
    """stage -> the curves of every run and receiver: (step, value) of loss, its running mean, and first accuracy."""
    stages: dict[str, list[Row]] = {}
    for run in runs:
        with checked(run.log_file):
            steps: dict[tuple[str, str], list[Row]] = {}
            for record in run.log:
                if "step" in record and "receiver" in record:
                    steps.setdefault((stage_of(record), record["receiver"]), []).append(record)
            for (stage, name), own in steps.items():
                found = stages.setdefault(stage, [])
                if (curve := _curve(run.name, name, own))["loss"]:
                    found.append(curve)
    return stages


def _curve(run: str, name: str, steps: Sequence[Row]) -> Row:
    done = [record for record in steps if "skipped" not in record]
    curve: Row = {"run": run, "receiver": name, "skipped": len(steps) - len(done)}
    for key, kept in (("loss", "loss"), (f"smooth_loss/{name}", "smooth"), ("first_acc", "accuracy")):
        values = [(record["step"], record.get(key)) for record in done]
        curve[kept] = [(step, value) for step, value in values if value is not None and math.isfinite(value)]
    return curve | {"seconds": [record["seconds"] for record in done if "seconds" in record]}


def rolling(points: Sequence[tuple[float, float]], around: int = 2) -> list[tuple[float, float]]:
    """Means over a point and so many on each side of it."""
    values = [y for _, y in points]
    return [(x, statistics.fmean(values[max(0, i - around) : i + around + 1])) for i, (x, _) in enumerate(points)]


def training(runs: Sequence[RunFiles]) -> list[Row]:
    """How each stage began and ended, one row for each run and receiver."""
    return [
        {
            "run": curve["run"],
            "stage": stage,
            "receiver": curve["receiver"],
            "steps": curve["loss"][-1][0],
            "skipped": curve["skipped"],
            "first": curve["loss"][0][1],
            "last": (curve["smooth"] or curve["loss"])[-1][1],
            "accuracy": rolling(curve["accuracy"], 4)[-1][1] if curve["accuracy"] else None,
            "step_s": statistics.median(curve["seconds"]) if curve["seconds"] else None,
        }
        for stage, found in curves(runs).items()
        for curve in found
    ]


def closed_forms(runs: Sequence[RunFiles]) -> list[Row]:
    """Held-out R² of each receiver's slots after the closed form; a companion's, of what they still missed."""
    rows = []
    for run in runs:
        with checked(run.log_file):
            for record in run.log:
                by = (
                    " (by the companion, of what was missed)" if str(record.get("stage")).endswith("/companion") else ""
                )
                for name, score in record.get("r2", {}).items():
                    row = {"run": run.name, "receiver": f"{name}{by}", "r2": score, "seconds": record.get("seconds")}
                    rows.append(row)
    return rows


def examples(run: RunFiles) -> Row:
    """A run's single answers and passages, as the page's browser reads them."""
    shown: list[Row] = []
    with checked(run.folder / PASSAGES):
        passages = [[p["context"][first:end] for first, end in p["windows"]] for p in run.passages]
    with checked(run.folder / PREDICTIONS):
        for row in run.answers:
            answers: Row = {}
            attention: Row = {}
            for name, given in answers_in(row).items():
                answers[name] = {m: (given[m]["prediction"], given[m]["f1"]) for m in ADAPTER_OF if m in given}
                if "attention" in given.get("latent", {}):
                    attention[name] = given["latent"]["attention"]
            example: Row = {"question": row["question"], "gold": row["answers"], "answers": answers}
            if passages and "passage" in row:
                windows = len(passages[row["passage"]])
                example["passage"] = row["passage"]
                for shares in attention.values():
                    if len(shares) != windows:
                        raise ValueError(f"attention on {len(shares)} latents of a passage with {windows} windows")
            shown.append(example | ({"attention": attention} if attention else {}))
    names = list(dict.fromkeys(name for e in shown for name in e["answers"]))
    modes = [m for m in ADAPTER_OF if any(m in e["answers"].get(n, {}) for e in shown for n in names)]
    against = {name: _baseline(run, name, shown) for name in names}
    return {
        "run": run.name,
        "receivers": names,
        "modes": modes,
        "against": against,
        "passages": passages,
        "examples": shown,
    }


def _baseline(run: RunFiles, name: str, shown: Sequence[Row]) -> str | None:
    if name in run.receivers and run.receivers[name]["latent"]:
        return baseline_of(run.receivers[name]["latent"], run.receivers[name])
    return "text" if shown and "text" in shown[0]["answers"].get(name, {}) else None


def contrasts(browser: Row, most: int) -> Iterator[Row]:
    """For each receiver, a few questions that the latents answer better than the text, and worse."""
    for name, mode in browser["against"].items():
        rows = [e for e in browser["examples"] if {"latent", mode} <= e["answers"].get(name, {}).keys()]

        def gain(example: Row, name: str = name, mode: str | None = mode) -> float:
            own = example["answers"][name]
            return own["latent"][1] - own[mode][1]

        for kind, better in (("latents better", 1), ("text better", -1)):
            chosen = [e for e in sorted(rows, key=gain, reverse=better > 0) if gain(e) * better > 0][:most]
            for e in chosen:
                own = e["answers"][name]
                row = {"run": browser["run"], "receiver": name, "kind": kind, "question": e["question"]}
                yield row | {"gold": e["gold"][0], "text": own[mode][0], "latent": own["latent"][0]}


def manifest(run: RunFiles) -> list[tuple[str, str]]:
    """What a run was made with, in words."""
    made = run.manifest
    rows = [
        ("folder", run.name),
        ("date", made.get("date")),
        ("command", " ".join(made.get("command") or [])),
        ("commit", _commit(made)),
        ("machine", made.get("cpu")),
        ("CPUs", made.get("cpus")),
        ("platform", made.get("platform")),
        ("Python", made.get("python")),
        ("versions", ", ".join(f"{name} {v}" for name, v in (made.get("versions") or {}).items() if v)),
    ]
    if run.results:
        measured = f"{run.results['samples']} questions on {run.results['passages']} passages"
        rows.append(("evaluation", f"{measured} ({run.results['dataset']})"))
        if (own := evaluation_manifest(run)) != made:
            rows += [("evaluated on", own.get("date")), ("by commit", _commit(own)), ("on machine", own.get("cpu"))]
    return [(key, str(value)) for key, value in rows if value]


def _commit(made: Row) -> str | None:
    git = made.get("git") or {}
    state = " with changes" if git.get("dirty") else ""
    return f"{git['commit'][:12]}{state}" if git.get("commit") else None
