"""`latentwire VERB ...`: the console command. A verb is one line in VERBS; what it does stands in a file of its own.

A verb's file is imported when the verb is called or asked for its --help: what needs no torch starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from latentwire import __version__
from latentwire.cli.run import as_program, run_and_exit

VERBS: dict[str, dict[str, tuple[str, str]]] = {
    "Ask": {
        "demo": ("demo:command", "Show one message, two models, and the figures behind it."),
        "ask": ("ask:ask", "Ask questions on a text, which is compressed once for all receivers."),
        "chat": ("chat:chat", "Ask in a dialogue."),
    },
    "Messages": {
        "encode": ("encode:encode", "Encode texts into messages."),
        "decode": ("decode:decode", "Answer questions on the texts behind messages."),
        "inspect": ("inspect_wire:inspect", "Check messages and print what their frames say."),
        "serve": ("serve:serve", "Serve a checkpoint over HTTP."),
        "index": ("index:index", "Compress a corpus into an index of messages."),
        "codecs": ("codecs:codecs", "Measure size, error and speed of every codec."),
        "rates": ("rates:rates", "Measure F1 against bytes, codec by codec."),
        "fuzz": ("fuzz:fuzz", "Parse damaged and forged messages."),
    },
    "Train and measure": {
        "questions": ("questions:questions", "Have a model ask questions on plain text, to train on."),
        "train": ("train:command", "Train a sender and its receivers, then evaluate."),
        "eval": ("eval:command", "Evaluate a checkpoint against every baseline."),
        "add-receiver": ("add_receiver:add_receiver", "Add a receiver to a trained sender, which stays as it is."),
        "average": ("average:average", "Average the weights of checkpoints that went on from the same ones."),
        "ablate": ("run_ablation:command", "Train and evaluate many runs, and compare them in a table."),
        "report": ("report:report", "Make one page of what runs left in their folders."),
        "compare": ("compare:command", "Compare latents with a text baseline."),
        "export": ("export:command", "Make a checkpoint to pass on."),
        "push": ("push:push", "Put an exported checkpoint on the Hub."),
        "bench": ("bench:command", "Measure training throughput."),
    },
    "Look after": {
        "validate": ("validate:validate", "Check configuration files."),
        "models": ("models:models", "List, fetch and remove language models."),
    },
}
"""Section of the help -> verb -> (file in this folder and what to take from it, one line of help).

What is taken is a function, or a `Typer` with verbs of its own.
"""


class Verb(TyperCommand):
    """Stands in for a verb until it is called. The words behind it are its context's `obj`."""

    def __init__(self, name: str, target: str, summary: str):
        super().__init__(name, help=summary)
        self.target = target

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.load().make_context(info_name, args, parent, obj=list(args), **extra)

    def load(self) -> Any:
        """The command itself."""
        from latentwire.cli.options import with_debug

        module, attribute = self.target.split(":")
        found = getattr(import_module(f"latentwire.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            group = get_group(found)
            group.commands = {name: with_debug(command) for name, command in group.commands.items()}
            return group
        return with_debug(get_command(as_program(found, self.name)))


class Verbs(TyperGroup):
    """All verbs, under the headings of VERBS."""

    def __init__(self, **attrs: Any):
        verbs = (verb for section in VERBS.values() for verb in section.items())
        super().__init__(**attrs | {"commands": {name: Verb(name, *how) for name, how in verbs}})

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, section in VERBS.items():
            with formatter.section(title):
                formatter.write_dl([(name, summary) for name, (_, summary) in section.items()])


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    rich_markup_mode=None,  # the same plain help for all verbs, and nothing to load for it
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"latentwire {__version__}")
        raise typer.Exit


@app.callback()
def latentwire(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One compressed message that different language models can read.

    Example: latentwire ask notes.txt "Who wrote them?" --receiver gemma3-270m
    """


def main(args: list[str] | None = None) -> Any:
    """Run a verb with its arguments and return what it returns; errors are raised."""
    result = app(args=args, prog_name="latentwire", standalone_mode=False)
    if isinstance(result, int) and result:  # no verb returns a number: it is an exit status, and Ctrl-C's is 130
        raise KeyboardInterrupt
    return result


def run() -> None:
    """Entry point of the console script and of `python -m latentwire`."""
    run_and_exit(main)
