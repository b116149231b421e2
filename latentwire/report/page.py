"""`report.html`, one page that needs nothing else, and `report.md`, made of what runs left in their folders."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from latentwire.core.atomic import write_text
from latentwire.core.json_files import dump_json
from latentwire.core.measures import RIVAL_MODES
from latentwire.report import charts, view
from latentwire.report.artifacts import RunFiles, read_runs
from latentwire.report.results import checked

PAGE, SUMMARY = "report.html", "report.md"
TEMPLATES = Path(__file__).parent / "templates"
SHAPES = {"text": "square", "text_tuned": "square", "latent": "circle", "token_budget": "triangle"}
SHAPES |= dict.fromkeys(RIVAL_MODES, "diamond")
CONTRASTS = 3
"""Questions of each kind that the Markdown quotes."""


def write_report(folders: Sequence[Path], out: Path) -> dict[str, str]:
    """Write both files of some runs, evaluations or ablations into a folder; returns their paths.

    LatentWireError, in one line, where a folder holds nothing of the kind or a file in it is broken.
    """
    runs = read_runs(folders)
    with checked(" or ".join(map(str, folders))):
        shown = content(runs)
        pages = {name: render(f"{name}.j2", shown) for name in (PAGE, SUMMARY)}
    for name, page in pages.items():
        write_text(out / name, page)
    return {"html": str(out / PAGE), "markdown": str(out / SUMMARY)}


def content(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """All that the two templates show."""
    scores, costs, latencies = view.scores(runs), view.costs(runs), view.latencies(runs)
    training = view.training(runs)
    browsers = [view.examples(run) for run in runs if run.answers]
    names = list(dict.fromkeys(row["receiver"] for row in [*scores, *training]))
    colors = {name: i for i, name in enumerate(names)}
    dashes = {run.name: i for i, run in enumerate(runs)}
    tops = charts.ticks(0, max((row["high"] for row in scores), default=1), 4)
    slowest = max((row["encode"] + row["answer"] for row in latencies), default=0)
    return {
        "runs": [run.name for run in runs],
        "colors": colors,
        "dashes": {name: charts.DASHES[i % len(charts.DASHES)] for name, i in dashes.items()},
        "scores": scores,
        "f1_ticks": tops,
        "shapes": {SHAPES[row["mode"]] for row in scores if row["mode"] in SHAPES},
        "costs": costs,
        "tradeoffs": _tradeoffs(scores, costs, colors),
        "latencies": latencies,
        "time_ticks": charts.ticks(0, slowest, 4),
        "training": training,
        "curves": _curves(runs, colors, dashes),
        "closed_forms": view.closed_forms(runs),
        "browsers": browsers,
        "data": _embedded(browsers),
        "contrasts": [row for browser in browsers for row in view.contrasts(browser, CONTRASTS)],
        "manifests": [(run.name, view.manifest(run), dump_json(run.config)) for run in runs],
        "missing": [(run.name, text) for run in runs for text in run.missing],
    }


def render(template: str, shown: dict[str, Any]) -> str:
    """One of the templates, filled."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=template.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": _number, "cell": _cell, "by_receiver": view.by_receiver}
    environment.globals["mark"] = charts.mark
    return environment.get_template(template).render(shown)


def _tradeoffs(scores: list[view.Row], costs: list[view.Row], colors: dict[str, int]) -> list[Markup]:
    """F1 by what is saved: by positions, and by the bytes of a passage."""
    spent = {(row["run"], row["receiver"]): row for row in costs}
    compression, sizes = [], []
    for row in scores:
        if row["mode"] not in SHAPES:
            continue
        cost, mode = spent[row["run"], row["receiver"]], row["mode"]
        label = f"{row['run']}, {row['receiver']}, {row['label']}"
        point = (row["f1"], row["low"], row["high"], colors[row["receiver"]], SHAPES[mode])
        reads_text = mode in ("text", "text_tuned")
        saved = cost["text_positions"] / row["positions"] if row["positions"] else cost["compression"]
        compression.append(charts.Dot(label, 1.0 if reads_text else saved, *point))
        if mode not in ("token_budget", *RIVAL_MODES):  # those are no messages
            sizes.append(charts.Dot(label, cost["utf8"] if reads_text else cost["wire"], *point))
    drawn = ((compression, "positions of the text by positions read"), (sizes, "bytes of a passage (text: UTF-8)"))
    return [charts.dot_chart(dots, label, "F1") for dots, label in drawn if dots]


def _curves(runs: Sequence[RunFiles], colors: dict[str, int], dashes: dict[str, int]) -> list[dict[str, Any]]:
    out = []
    for stage, found in view.curves(runs).items():
        loss, accuracy = [], []
        for curve in found:
            style = (f"{curve['run']}, {curve['receiver']}", colors[curve["receiver"]], dashes[curve["run"]])
            label, color, dash = style
            loss.append(charts.Line(label, curve["loss"], color, dash, faint=True))
            loss.append(charts.Line(label, curve["smooth"] or curve["loss"], color, dash))
            if curve["accuracy"]:
                accuracy.append(charts.Line(label, view.rolling(curve["accuracy"]), color, dash))
        if loss:
            drawn = [charts.line_chart(loss, "step", "loss")]
            drawn += [charts.line_chart(accuracy, "step", "first-token accuracy")] if accuracy else []
            out.append({"stage": stage, "charts": drawn})
    return out


def _embedded(value: Any) -> Markup:
    """JSON for a script element, which nothing in it can end."""
    return Markup(json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _cell(text: str) -> str:
    """A text in a line of Markdown, which nothing in it can end, link or mark up."""
    return re.sub(r"([\\|<&\[\]!*_`~])", r"\\\1", " ".join(text.split())) or "(nothing)"
