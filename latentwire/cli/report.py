"""`latentwire report`: what runs left in their folders, as a page and as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentwire.cli.options import Json, output_folder
from latentwire.core.json_files import dump_json


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, evaluations or ablations.")],
    out: Annotated[
        Path | None,
        output_folder("Where it goes; default: RUN itself, or ./report for several."),
    ] = None,
    as_json: Json = False,
) -> dict[str, str]:
    """Write report.html, one page that needs nothing else, and report.md. No model is loaded.

    Example: latentwire report runs/default runs/demo -o report
    """
    from latentwire.report.page import write_report

    written = write_report(runs, out or (runs[0] if len(runs) == 1 else Path("report")))
    if as_json:
        print(dump_json(written), end="")
    else:
        print(f"report: {written['html']} and {written['markdown']}")
    return written
