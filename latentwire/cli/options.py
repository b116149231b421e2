"""Options that several verbs have, each with the same name and meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from latentwire.cli.run import as_program
from latentwire.config.load import parse_overrides
from latentwire.core.errors import ConfigError

HERE = Path(__file__).resolve().parents[2]
ROOT = HERE if (HERE / "pyproject.toml").is_file() else Path.cwd()
"""The checkout that has checkpoints, configurations and examples, or the working directory where there is none."""
DEFAULT_CHECKPOINT = str(ROOT / "checkpoints" / "default")
CHECKPOINT = "Checkpoint, a run's folder (its last one), or ORG/NAME[@REVISION] on the Hub."
Checkpoint = Annotated[str, typer.Option("--ckpt", metavar="DIR", help=CHECKPOINT)]
ConfigFile = Annotated[str | None, typer.Option("--config", metavar="FILE", help="JSON configuration.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", metavar="KEY=VALUE", help="Change one key of the configuration."),
]
OnlyReceivers = Annotated[
    list[str] | None,
    typer.Option(
        "--receivers", "--receiver", metavar="A,B", help="Only these receivers of the checkpoint; default: all."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TextToo = Annotated[bool, typer.Option("--text-too/--no-text", help="Answer from the text as well, to compare.")]
MaxNewTokens = Annotated[int, typer.Option("--max_new_tokens", min=1, help="Longest answer.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def _debug(debug: Debug = False) -> None:
    """Has the one option that all verbs have."""


def with_debug(verb: Any) -> Any:
    """The verb with --debug, which `run_and_exit` reads. One that does more with it has the option already."""
    if not any("--debug" in option.opts for option in verb.params):
        (option,) = get_command(as_program(_debug)).params
        option.expose_value = False
        verb.params.append(option)
    return verb


def output_folder(help: str) -> Any:
    """The option that names the folder which a verb writes."""
    return typer.Option("-o", "--out_dir", "--out", metavar="DIR", help=help)


LENGTH = {"evaluation.max_new_tokens": "--max_new_tokens"}
"""For `changes_of`, in verbs that have the option."""


def changes_of(overrides: Sequence[str] | None, said: Mapping[str, str]) -> dict[str, Any]:
    """What --override changes, by dotted key; ConfigError for a key that an option of the verb says."""
    changes = parse_overrides(overrides)
    for key in sorted(changes.keys() & said.keys()):
        raise ConfigError(f"--override {key}: {said[key]} says that here")
    return changes


def names_of(*words: str | None) -> list[str]:
    """The names in words that may hold several each, separated by commas."""
    return [name.strip() for word in words if word for name in word.split(",") if name.strip()]
