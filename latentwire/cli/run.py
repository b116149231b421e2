"""What all commands share: errors in one line, and how a script's `main([...])` calls a click command."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from latentwire.core.errors import LatentWireError

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_CHECKPOINT = str(ROOT / "checkpoints" / "default")
INTERRUPTED = 130


def invoke(command: click.Command, args: Sequence[str] | None = None) -> Any:
    """Run a command with its arguments and return what it returns; errors are raised."""
    arguments = list(sys.argv[1:] if args is None else args)
    return command.main(arguments, prog_name=command.name, standalone_mode=False, obj=arguments)


def command_line() -> list[str]:
    """The running command as it would be typed."""
    context = click.get_current_context()
    return ["python", "-m", str(context.command.name), *context.obj]


def run_and_exit(main: Callable[[], Any]) -> None:
    """Run `main` as a program: a user's error is one line and exit status 2, Ctrl-C is 130.

    --debug on the command line shows the traceback as well.
    """
    debug = "--debug" in sys.argv
    try:
        main()
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (LatentWireError, MemoryError, OSError) as error:
        if debug:
            traceback.print_exc()
        interrupted = type(error).__name__ == "Interrupted"
        text = str(error) or type(error).__name__
        print(f"{'' if interrupted else 'error: '}{text}", file=sys.stderr)
        sys.exit(INTERRUPTED if interrupted else 2)
    except (KeyboardInterrupt, click.Abort):
        print("stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
