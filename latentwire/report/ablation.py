"""The tables and the plot of an ablation, made of what its runs left in their folders. No torch.

FOLDER/ablation.json        the runs: names, and what sets each apart
       <run>/               a training run (eval.json, diagnostics.jsonl, ...), or failed.json
       history.jsonl        every run's diagnostics, one behind the other, each line with its run
       table.{md,csv,json}  one row for each run and receiver
       plot.png             F1 with its interval
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latentwire.config.load import same_config
from latentwire.core.atomic import write_bytes, write_text
from latentwire.core.intervals import with_interval
from latentwire.core.json_files import mapping_at, read_json, write_json, write_jsonl
from latentwire.core.names import FAILED, INDEX, LOG, RESULTS
from latentwire.diagnostics.log import read_log
from latentwire.report.paired import paired_differences
from latentwire.report.plots import around, as_png

SCHEMA = 1
PLAN = "ablation.json"
STAGE = "end_to_end"
"""The stage whose trained parameters and step time are compared."""
MEASURES = ("f1", "f1_ci", "em", "em_ci", "nll_per_token", "first_token_acc")
COLUMNS = ("em", "nll_per_token", "first_token_acc", "compression", "wire_bytes", "trained_parameters", "step_s")
HEADINGS = ("EM", "NLL/token", "first token", "compression", "wire bytes", "trained parameters", "step s")
DIFFERENCES = ("f1_apart", "f1_apart_low", "f1_apart_high", "nll_apart", "nll_apart_low", "nll_apart_high")
FORMATS = ("{:.3f}", "{:.3f}", "{:.3f}", "{:.2f}x", "{:.0f}", "{:,}", "{:.2f}")


def write_report(folder: Path) -> dict[str, Any]:
    """Write history, tables and plot of the runs as far as they have come; returns what table.json holds."""
    plan = read_json(folder / PLAN)
    configs = {run["name"]: run.get("config") for run in plan["runs"]}
    table = {"schema": SCHEMA, "name": plan["name"], "runs": [collect(folder, run, configs) for run in plan["runs"]]}
    names = [run["run"] for run in table["runs"]]
    write_jsonl(folder / "history.jsonl", history(folder, names))
    write_json(folder / "table.json", table)
    write_text(folder / "table.csv", as_csv(table))
    write_text(folder / "table.md", as_markdown(table))
    if any(run["receivers"] for run in table["runs"]):
        write_bytes(folder / "plot.png", plot(table))
    return table


def collect(folder: Path, planned: dict[str, Any], configs: Mapping[str, Any]) -> dict[str, Any]:
    """One run: how far it came, and what was measured of each receiver that reads latents.

    configs: that of each run; what one of another configuration left there is not its own.
    A receiver's `difference` is that from the run which the plan sets this one against: see `paired_differences`.
    """
    run = folder / planned["name"]
    row: dict[str, Any] = {"run": planned["name"], "differs": planned["differs"], "status": "unfinished", "error": None}
    row |= {"dataset": None, "samples": None, "commit": None, "cpu": None, "receivers": {}}
    row["against"] = against = planned.get("against")
    if (run / FAILED).is_file():
        return row | {"status": "failed", "error": read_json(run / FAILED)["error"]}
    if not is_evaluated(run, configs[planned["name"]]):
        return row
    results = read_json(run / RESULTS)
    if not all(receiver["latent"] for receiver in results["receivers"].values()):  # evaluated again, without latents
        return row
    made = results["manifest"]
    row |= {"status": "done", "dataset": results["dataset"], "samples": results["samples"]}
    row |= {"commit": made["git"] and made["git"]["commit"], "cpu": made["cpu"]}
    compared = against is not None and is_evaluated(folder / against, configs[against])
    apart = paired_differences(run, folder / str(against)) if compared else {}
    steps = [r for r in _log(run) if r.get("stage") == STAGE and "skipped" not in r]
    for name, receiver in results["receivers"].items():
        seconds = [r["seconds"] for r in steps if name in r.get("receiver", "").split("+")]
        row["receivers"][name] = {
            **{key: receiver["latent"][key] for key in MEASURES},
            "compression": receiver["compression"],
            "wire_bytes": receiver["bytes"]["wire"],
            "trained_parameters": trained_parameters(run, name),
            "step_s": statistics.median(seconds) if seconds else None,
            "difference": apart.get(name),
        }
    return row


def trained_parameters(run: Path, receiver: str) -> int | None:
    """Parameters trained end to end for one receiver: its own groups, and those that all share (the encoder)."""
    index = run / "stages" / STAGE / "done" / INDEX
    groups = read_json(index).get("parameters", {}) if index.is_file() else {}
    own = [count for group, count in groups.items() if "/" not in group or group.endswith(f"/{receiver}")]
    return sum(own) if own else None


def history(folder: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    """The diagnostics of all runs, each line with the name of its run."""
    for name in names:
        for row in _log(folder / name):
            yield {"run": name} | row


def _log(run: Path) -> list[dict[str, Any]]:
    return read_log(run / LOG) if (run / LOG).is_file() else []


def as_csv(table: dict[str, Any]) -> str:
    """One row for each run and receiver, numbers in full; runs without results have one row too."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["run", "status", "receiver", "f1", "f1_low", "f1_high", *COLUMNS, *DIFFERENCES, "differs"])
    for run in table["runs"]:
        differs = json.dumps(run["differs"])
        for name, m in run["receivers"].items():
            d = m["difference"]
            apart = (
                [""] * len(DIFFERENCES)
                if d is None
                else [d["f1"], *d["f1_ci"], d["nll_per_token"], *d["nll_per_token_ci"]]
            )
            measures = [m["f1"], *m["f1_ci"], *(m[c] for c in COLUMNS), *apart]
            writer.writerow([run["run"], run["status"], name, *measures, differs])
        if not run["receivers"]:
            writer.writerow([run["run"], run["status"], *[""] * (len(COLUMNS) + len(DIFFERENCES) + 4), differs])
    return out.getvalue()


def as_markdown(table: dict[str, Any]) -> str:
    """The table for readers, with what it was made on above it."""
    lines = [f"# Ablation {table['name']}", ""]
    done = [run for run in table["runs"] if run["receivers"]]
    for text in dict.fromkeys(
        f"{run['samples']} held-out questions ({run['dataset']}), read from the message's bytes; commit "
        f"{(run['commit'] or 'unknown')[:7]}, {run['cpu']}."
        for run in done
    ):
        lines += [text, ""]
    compared = any(run["against"] for run in table["runs"])
    headings = ["F1 [95 %]", *(["F1 apart", "NLL apart"] if compared else []), *HEADINGS]
    lines += [f"| run | receiver | {' | '.join(headings)} |", f"|---|---|{'---|' * len(headings)}"]
    for run in table["runs"]:
        for name, m in run["receivers"].items():
            cells = [with_interval(m["f1"], m["f1_ci"])]
            if compared:
                cells += [_apart(m["difference"], key) for key in ("f1", "nll_per_token")]
            cells += [
                "" if m[column] is None else form.format(m[column])
                for column, form in zip(COLUMNS, FORMATS, strict=True)
            ]
            lines.append(f"| {run['run']} | {name} | {' | '.join(cells)} |")
        if not run["receivers"]:
            said = f"{run['status']}: {run['error']}" if run["error"] else run["status"]
            lines.append(f"| {run['run']} | {said.replace('|', '/')} |{' |' * len(headings)}")
    if compared:
        lines += [
            "",
            "Apart: from the run that it is set against, on the same questions, with the paired 95 % interval.",
        ]
    lines += ["", f"Trained parameters and step time are those of the stage `{STAGE}`. What each run changes:", ""]
    for run in table["runs"]:
        lines.append(
            f"- {run['run']}: {_words(run['differs'])}" + (f"; against {run['against']}" if run["against"] else "")
        )
    return "\n".join(lines) + "\n"


def _apart(difference: dict[str, Any] | None, key: str) -> str:
    if difference is None:
        return ""
    low, high = difference[f"{key}_ci"]
    return f"{difference[key]:+.3f} [{low:+.3f}, {high:+.3f}]"


def is_evaluated(run: Path, config: dict[str, Any] | None) -> bool:
    """Whether a run's folder holds an evaluation, and of this very configuration where one is given."""
    if config is None or not (run / RESULTS).is_file():
        return (run / RESULTS).is_file()
    return same_config(mapping_at(read_json(run / RESULTS), "manifest").get("config"), config)


def _words(differs: dict[str, Any]) -> str:
    return ", ".join(f"`{key}` = `{json.dumps(value)}`" for key, value in differs.items()) or "nothing"


def plot(table: dict[str, Any]) -> bytes:
    """A PNG: F1 with its 95 % interval, a row for each finished run, a colour for each receiver."""
    from matplotlib.figure import Figure  # without pyplot: no display, no state

    runs = [run for run in table["runs"] if run["receivers"]]
    names = list(dict.fromkeys(name for run in runs for name in run["receivers"]))
    figure = Figure(figsize=(7, 1.2 + 0.4 * len(runs)), layout="constrained")
    axes = figure.subplots()
    for k, name in enumerate(names):
        there = [(y, run["receivers"][name]) for y, run in enumerate(runs) if name in run["receivers"]]
        shift = 0.12 * (k - (len(names) - 1) / 2)  # or the intervals would hide each other
        f1, rows = [m["f1"] for _, m in there], [y + shift for y, _ in there]
        axes.errorbar(f1, rows, xerr=around([m for _, m in there], "f1"), fmt="o", capsize=3, label=name)
    axes.set_yticks(range(len(runs)), [run["run"] for run in runs])
    axes.invert_yaxis()
    axes.set_xlabel("F1 of answers read from the message, 95 % interval")
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    return as_png(figure)
