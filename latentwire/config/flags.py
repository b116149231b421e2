"""Command-line flags, generated from the schema: a flag on the command line wins over file and override."""

from __future__ import annotations

import functools
import inspect
import json
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from latentwire.config.load import json_or_text
from latentwire.config.schema import Config
from latentwire.config.sections.base import leaves

STAGE_SECTION = "curriculum"
SPECIAL = {"curriculum.end_to_end.epochs": "epochs"}
"""Flags whose name is not the field's."""


@dataclass(frozen=True)
class Option:
    """One leaf of the schema, with its flag (without dashes; None where it has none)."""

    dotted: str
    flag: str | None
    field: FieldInfo


def options() -> Iterator[Option]:
    """Every leaf of the schema, in order. Fields of a training stage carry the stage's name in their flag."""
    for dotted, field in leaves(Config):
        section, *stage, name = dotted.split(".")
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        flag: Any = extra.get("flag", name)
        if stage and section == STAGE_SECTION:
            flag = SPECIAL.get(dotted, f"{stage[0]}_{name}")
        yield Option(dotted, flag, field)


def schema_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function of a command line: it gets `flags`, {dotted key: value} of the flags that were really given.

    Typer, which reads the signature, finds one parameter for each flag in place of `flags`.
    """
    known = {option.flag: option for option in options() if option.flag}

    def run(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(f"schema_{name}") for name in known}
        flags = {known[name].dotted: _value(known[name], v) for name, v in given.items() if v is not None}
        return command(*args, flags=flags, **kwargs)

    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "flags"]
    wrapped: Any = functools.update_wrapper(run, command)
    wrapped.__signature__ = signature.replace(parameters=[*own, *map(_parameter, known.values())])
    return wrapped


def _parameter(option: Option) -> inspect.Parameter:
    text = f"{option.field.description or ''} [{option.dotted}; default: {default_of(option.field)}]".strip()
    if _plain(option.field.annotation) is bool:
        form: Any = Annotated[bool | None, typer.Option(f"--{option.flag}/--no_{option.flag}", help=text)]
    else:
        metavar = type_name(option.field).upper()
        form = Annotated[str | None, typer.Option(f"--{option.flag}", metavar=metavar, help=text)]
    name = f"schema_{option.flag}"
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=form)


def default_of(field: FieldInfo) -> str:
    """A field's default, as it stands in a JSON file."""
    return json.dumps(field.get_default(), ensure_ascii=False)


def type_name(field: FieldInfo) -> str:
    """A short name of a field's type."""
    choices = [arg for part in _parts(field.annotation) if get_origin(part) is Literal for arg in get_args(part)]
    if choices:
        return "|".join(map(str, choices))
    names = []
    for part in _parts(field.annotation):
        base = get_origin(part) or part
        names.append("list" if base in (list, tuple) else getattr(base, "__name__", str(base)))
    return "|".join(dict.fromkeys(names))


def _parts(annotation: Any) -> list[Any]:
    """The alternatives of a type, without None and without constraints."""
    if hasattr(annotation, "__metadata__"):
        return _parts(annotation.__origin__)
    if get_origin(annotation) in (Union, types.UnionType):
        return [p for arg in get_args(annotation) if arg is not type(None) for p in _parts(arg)]
    return [annotation]


def _plain(annotation: Any) -> Any:
    parts = _parts(annotation)
    return parts[0] if len(parts) == 1 else None


def _value(option: Option, value: Any) -> Any:
    """What a flag's text stands for. Lists are separated by commas; mappings are JSON; pydantic turns text into
    numbers."""
    if isinstance(value, str):
        parts = _parts(option.field.annotation)
        lists = any(get_origin(p) in (list, tuple) for p in parts)
        choices = [arg for p in parts if get_origin(p) is Literal for arg in get_args(p)]
        if value.startswith("{") and any((get_origin(p) or p) is dict for p in parts):
            return json_or_text(value)
        if lists and value not in choices and ("," in value or str not in parts):
            return [part.strip() for part in value.split(",") if part.strip()]
    return value
