"""`latentwire validate`: configuration files, checked without loading anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from latentwire.cli.options import Json
from latentwire.config import config_from_dict
from latentwire.config.ablation import Ablation, load_ablation
from latentwire.config.load import parse_overrides, read_config_file
from latentwire.core.errors import ConfigError, LatentWireError
from latentwire.core.json_files import dump_json


def validate(
    configs: Annotated[list[str], typer.Argument(metavar="CONFIG", help="JSON files of runs or of ablations.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--override", metavar="KEY=VALUE", help="Change one key of every file.")
    ] = None,
    as_json: Json = False,
) -> list[dict[str, Any]]:
    """Check configurations as training would, and every run of an ablation. Loads no model and no data.

    All files are looked at; status 2 if one of them is wrong.

    Example: latentwire validate configs/default.json --override encoder.window=8
    """
    changes = parse_overrides(overrides)
    rows = [check(Path(config), changes) for config in configs]
    wrong = [row["error"] for row in rows if row["error"]]
    if as_json:
        print(dump_json(rows), end="")
    for row in rows:
        if row["error"] and len(configs) > 1:
            print(f"wrong: {row['error']}", file=sys.stderr)
        elif not row["error"] and not as_json:
            print(f"{row['file']}: valid, {_plain(row)}")
    if wrong:
        raise ConfigError(wrong[0] if len(configs) == 1 else f"{len(wrong)} of {len(configs)} files are wrong")
    return rows


def check(path: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """What a file describes, or the error in it."""
    from latentwire.training.requirements import check_requirements  # takes longer to load than the schema

    row: dict[str, Any] = {"file": str(path), "kind": None, "runs": [], "receivers": {}, "error": None}
    try:
        values = read_config_file(path)
        if set(values) & set(Ablation.model_fields):
            runs = {run.name: run.config for run in load_ablation(path, overrides=changes).runs}
            row |= {"kind": "ablation", "runs": list(runs)}
        else:
            runs = {path.stem: config_from_dict(values, str(path), changes)}
            row |= {"kind": "run"}
        for config in runs.values():
            row["receivers"] |= config.model.chosen
            check_requirements(config)
    except LatentWireError as error:
        where, text = f"{path}: ", str(error)
        row["error"] = text if text.startswith(where) else where + text
    return row


def _plain(row: dict[str, Any]) -> str:
    receivers = ", ".join(f"{name} = {model}" for name, model in row["receivers"].items())
    runs = f"{len(row['runs'])} runs, " if row["kind"] == "ablation" else ""
    return f"{runs}receivers: {receivers}"
