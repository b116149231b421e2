"""`latentwire compare`: what the latents keep of a text baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentwire.cli.options import Json
from latentwire.cli.run import invoke, run_and_exit
from latentwire.core.json_files import dump_json
from latentwire.report.compare import as_markdown, compare, files_of
from latentwire.report.results import checked


def command(
    latent: Annotated[str, typer.Option(metavar="FILE", help="eval.json whose latents are compared.")],
    text: Annotated[str, typer.Option(metavar="FILE", help="eval.json with the text baseline.")],
    as_json: Json = False,
) -> list[dict[str, Any]]:
    """Compare latents with a text baseline on the same questions, receiver by receiver.

    Example: latentwire compare --latent runs/a/eval.json --text runs/b/eval.json
    """
    files = Path(latent), Path(text)
    rows = compare(*files)
    with checked(files_of(*files)):
        shown = dump_json(rows) if as_json else as_markdown(rows)
    print(shown, end="")
    return rows


def main(args: list[str] | None = None) -> list[dict[str, Any]]:
    """Compare with command-line arguments; returns one row a receiver."""
    rows: list[dict[str, Any]] = invoke("compare", args)
    return rows


if __name__ == "__main__":
    run_and_exit(main)
