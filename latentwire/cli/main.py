"""`latentwire VERB ...`: the console command. A verb is one function in a file of its own, added to VERBS."""

from __future__ import annotations

from typing import Any

import click
import typer

from latentwire.cli.codecs import codecs
from latentwire.cli.decode import decode
from latentwire.cli.encode import encode
from latentwire.cli.fuzz import fuzz
from latentwire.cli.index import index
from latentwire.cli.inspect_wire import inspect
from latentwire.cli.run import run_and_exit
from latentwire.cli.serve import serve

VERBS = (encode, decode, inspect, codecs, fuzz, serve, index)

app = typer.Typer(
    name="latentwire",
    help="One compressed message that different language models can read.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in VERBS:
    app.command()(verb)


def main(args: list[str] | None = None) -> Any:
    """Run a verb with its arguments and return what it returns; errors are raised."""
    try:
        return app(args=args, prog_name="latentwire", standalone_mode=False)
    except typer.TyperException as error:  # Typer has a click of its own
        message = error.format_message()
        raise (click.UsageError(message) if message else click.exceptions.Exit(2)) from error
    except typer.Abort:
        raise KeyboardInterrupt from None


def run() -> None:
    """Entry point of the console script."""
    run_and_exit(main)


if __name__ == "__main__":
    run()
