"""What all commands share: errors in one line, counts in words, and how `main([...])` of a verb's file runs it."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from latentwire.core.errors import Interrupted, LatentWireError

if TYPE_CHECKING:
    import typer

INTERRUPTED = 130


def invoke(verb: str, args: Sequence[str] | None = None) -> Any:
    """Run a verb with its arguments, by default the program's, and return what it returns; errors are raised."""
    from latentwire.cli.main import main

    return main([verb, *(sys.argv[1:] if args is None else args)])


def as_program(function: Callable[..., Any], name: str | None = None) -> typer.Typer:
    """A function as a command of its own."""
    import typer

    program = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    program.command(name)(function)
    return program


def command_line(context: typer.Context) -> list[str]:
    """A running verb as it would be typed."""
    return ["latentwire", str(context.info_name), *context.obj]


def plural(count: int, noun: str) -> str:
    """A number of things in words: "1 message", "2 messages"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def run_and_exit(main: Callable[[], Any]) -> None:
    """Run `main` as a program: a user's error is one line and exit status 2, Ctrl-C is 130.

    --debug on the command line shows the traceback as well.
    """
    debug = "--debug" in sys.argv
    _prepare_streams()
    try:
        main()
        sys.stdout.flush()  # here, where what is wrong with it has its status
    except BrokenPipeError:  # whoever read the output has enough of it
        _end_output()
        sys.exit(0)
    except SystemExit:
        if type(sys.stdout).__name__.endswith("PacifyFlushWrapper"):  # what click makes of the same
            _end_output()
            sys.exit(0)
        raise
    except (LatentWireError, MemoryError, OSError) as error:
        if debug:
            traceback.print_exc()
        try:
            sys.stdout.flush()
        except OSError:
            _end_output()
        interrupted = isinstance(error, Interrupted)
        text = str(error) or type(error).__name__
        print(f"{'' if interrupted else 'error: '}{text}", file=sys.stderr)
        sys.exit(INTERRUPTED if interrupted else 2)
    except KeyboardInterrupt:
        _stopped()
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of an accelerator
            help = "a smaller optimizer.batch_size or system.grad_ckpt may help"
            print(f"error: {str(error).splitlines()[0]} ({help})", file=sys.stderr)
            sys.exit(2)
        # Kinds of the click in Typer, which is not loaded only to name them.
        if type(error).__name__ == "Abort":
            _stopped()
        if not hasattr(error, "exit_code"):
            raise
        if hasattr(error, "show"):
            error.show()
        sys.exit(error.exit_code)


def _prepare_streams() -> None:
    """Have all three standard streams open, and no character that ends a command because it cannot be written."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller; the next file to be opened would take its place
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # until the end
        # What the encoding lacks is shown as an escape, and bytes that are none of it are left to what reads them.
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if mode == "r" else "backslashreplace")


def _end_output() -> None:
    """Write no more, so that what could not be written is not tried again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stopped() -> NoReturn:
    print("stopped", file=sys.stderr)
    sys.exit(INTERRUPTED)
