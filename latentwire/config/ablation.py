"""Ablations: many runs that differ in a few keys, described by one JSON file.

    {
      "base": "../smoke/base.json",                       a configuration, relative to this file
      "overrides": {"data.samples": 120},                 changes to it in every run
      "runs": {"frozen": {}, "lora": {"features.use_lora": true}},
      "sweep": {"encoder.window": [4, 8]},
      "against": {"lora_window=4": "frozen_window=4"}             what the table compares question by question
    }

Every named run is made once for each point of the sweep's grid: here frozen_window=4, frozen_window=8, lora_window=4
and lora_window=8. Without `runs`, the grid is swept over the base; without a sweep, the named runs stand alone.
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from latentwire.config.load import config_from_dict, first_problem, lifting, read_config_file
from latentwire.config.schema import Config
from latentwire.config.sections.base import Section
from latentwire.core.errors import ConfigError

Changes = dict[str, Any]
BASE = "base"
"""Name of the run of an ablation that names none and sweeps nothing."""


class Ablation(Section):
    """The file of an ablation."""

    base: str | None = Field(None, description="Configuration file, relative to this one; default: all defaults.")
    overrides: Changes = Field({}, description="Dotted key -> value, in every run.")
    runs: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")], Changes] = Field(
        {}, description="Name -> what the run changes, dotted key -> value."
    )
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        {}, description="Dotted key -> its values; every run is made at every point of the grid."
    )
    against: dict[str, str] = Field(
        {}, description="Run, or pattern with * and ? -> the run whose answers its own are compared with, one by one."
    )


@dataclass(frozen=True)
class PlannedRun:
    """One run: its name, what sets it apart from the others, all that it changes in the base, and the whole.

    against: the run whose answers the table compares with its own.
    """

    name: str
    differs: Changes
    changes: Changes
    config: Config
    against: str | None = None


@dataclass(frozen=True)
class Plan:
    """All runs of an ablation, in order."""

    name: str
    base: Path | None
    runs: tuple[PlannedRun, ...]


def load_ablation(
    path: Path, sweep: Mapping[str, Sequence[Any]] | None = None, overrides: Changes | None = None
) -> Plan:
    """Read an ablation's file and resolve every run; ConfigError, naming file, run and key, before anything is run.

    `sweep` adds to the file's sweep, or replaces the values of a key; `overrides` win over everything in the file.
    """
    values = read_config_file(path)
    try:
        ablation = Ablation.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error, Ablation)}") from None
    grid = ablation.sweep | {key: list(given) for key, given in (sweep or {}).items()}
    _check_keys_apart(path, ablation, grid, lifting(overrides or {}))
    base = Path(ablation.base) if ablation.base else None
    known = read_config_file(base) if base else {}
    runs = []
    for name, own in (ablation.runs or {"": {}}).items():
        for point in itertools.product(*grid.values()):
            differs = own | dict(zip(grid, point, strict=True))
            label = "_".join([name] * bool(name) + _labels(dict(zip(grid, point, strict=True)))) or BASE
            changes = lifting(ablation.overrides) | lifting(differs) | lifting(overrides or {})
            config = config_from_dict(known, f"{path}: run {label!r}", changes)
            if not config.evaluation.samples:
                raise ConfigError(f"{path}: run {label!r}: evaluation.samples: 0, but the table is made of evaluations")
            if "latent" not in config.evaluation.modes:
                raise ConfigError(f"{path}: run {label!r}: evaluation.modes: 'latent' is what the table compares")
            runs.append(PlannedRun(label, differs, changes, config))
    twice = [label for label, count in Counter(run.name for run in runs).items() if count > 1]
    if twice:
        raise ConfigError(f"{path}: two runs would be called {twice[0]!r}")
    names = [run.name for run in runs]
    for pattern, other in ablation.against.items():
        if other not in names:
            raise ConfigError(f"{path}: against.{pattern}: no run is called {other!r} (there are: {', '.join(names)})")
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f"{path}: against.{pattern}: no such run (there are: {', '.join(names)})")
    return Plan(path.stem, base, tuple(replace(run, against=_against(run.name, ablation.against)) for run in runs))


def _against(name: str, against: Mapping[str, str]) -> str | None:
    """The run that the first fitting pattern names; where that is the run itself, none."""
    found = next((other for pattern, other in against.items() if fnmatch.fnmatch(name, pattern)), None)
    return None if found == name else found


def _check_keys_apart(path: Path, ablation: Ablation, grid: Mapping[str, Any], overrides: Changes) -> None:
    """What a run sets must not be overwritten by the grid, nor what varies by the command line."""
    for name, own in ablation.runs.items():
        if both := sorted(own.keys() & grid.keys()):
            raise ConfigError(f"{path}: runs.{name}: {both[0]} is swept as well")
    varied = grid.keys() | {key for own in ablation.runs.values() for key in own}
    if both := sorted(varied & overrides.keys()):
        raise ConfigError(f"--override {both[0]}: the runs of {path} differ in it")


def _labels(point: Changes) -> list[str]:
    """`key=value` of each coordinate of a point, with the shortest end of the key that tells it from the others."""
    return [f"{_short(key, point)}={_slug(value)}" for key, value in point.items()]


def _short(key: str, keys: Mapping[str, Any]) -> str:
    parts = key.split(".")
    ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
    return next(end for end in ends if sum(k == end or k.endswith(f".{end}") for k in keys) == 1)


def _slug(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-")[:40]
