"""`latentwire compare`: what the latents keep of a text baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from latentwire.cli.run import invoke, run_and_exit
from latentwire.core.json_files import dump_json
from latentwire.report.compare import as_markdown, compare, files_of
from latentwire.report.results import checked


@click.command(name="latentwire.cli.compare")
@click.option("--latent", required=True, metavar="FILE", help="eval.json whose latents are compared.")
@click.option("--text", required=True, metavar="FILE", help="eval.json with the text baseline.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of the table.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def command(latent: str, text: str, as_json: bool, debug: bool) -> list[dict[str, Any]]:
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
    rows: list[dict[str, Any]] = invoke(command, args)
    return rows


if __name__ == "__main__":
    run_and_exit(main)
