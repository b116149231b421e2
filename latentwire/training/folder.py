"""The folder of a run, which several processes may share.

runs/<name>/
    config.json  manifest.json  diagnostics.jsonl
    inputs.json  origin.json             what it reads, and the checkpoint that it started from
    stages/<stage>/step_000100/ ...      resumable states
    stages/<stage>/done/                 the finished stage
    epoch1/ epoch2/ ... last/            checkpoints for evaluation
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentwire.config import Config
from latentwire.config.form import MAY_CHANGE, run_id
from latentwire.config.load import changed_in
from latentwire.core.errors import ConfigError
from latentwire.core.json_files import append_jsonl, read_json, read_object, write_json
from latentwire.core.manifest import run_manifest
from latentwire.core.names import (
    CONFIG,
    FAILED,
    INDEX,
    INPUTS,
    LOG,
    MANIFEST,
    ORIGIN,
    PASSAGES,
    PREDICTIONS,
    RESULTS,
    TABLE,
)
from latentwire.training.origin import Origin
from latentwire.training.processes import Processes
from latentwire.training.tracking import tracker_of

OWN = (
    *("stages", "last", "tensorboard", LOG, ORIGIN, INPUTS, FAILED, RESULTS, TABLE, PREDICTIONS, PASSAGES),
    *(MANIFEST, CONFIG),
)
"""What a run and its evaluation write into their folder, beside checkpoints of epochs; by the last two it is told."""


def has_begun(path: Path) -> bool:
    """Whether a run in a folder has something to go on from."""
    return (path / CONFIG).is_file() and (any(path.glob("stages/*/*")) or (path / "last").is_dir())


def changed_since(path: Path, config: Config) -> list[str]:
    """The dotted keys in which the run in a folder, if there is one, was started with another configuration.

    What ended before its first stage had anything to keep is no run: a mistake may be put right in the same folder.
    """
    if not has_begun(path):
        return []
    file = path / CONFIG
    return changed_in(read_json(file), str(file), config, MAY_CHANGE)


def own_folder(path: Path, config: Config) -> Path:
    """The folder for a run that nobody named: where another configuration's run is there already, one beside it."""
    if not changed_since(path, config):
        return path
    beside = path.with_name(f"{path.name}-{run_id(config)}")
    print(f"{path} holds a run of another configuration; this one is in {beside}", flush=True)
    return beside


class RunFolder:
    """Where a run keeps what it has done. Only the main process writes there, and it alone has a tracker."""

    def __init__(self, path: Path, config: Config, processes: Processes):
        self.path = path
        self.config = config
        self.processes = processes
        tracker = tracker_of(config, path)  # so that all processes refuse one that is not installed
        self.tracker = tracker if processes.is_main else None

    @property
    def last(self) -> Path:
        """The checkpoint at the end of the run."""
        return self.path / "last"

    @property
    def epochs(self) -> list[Path]:
        """The checkpoints after epochs."""
        found = (path for path in self.path.glob("epoch*") if re.fullmatch(r"epoch\d+", path.name))
        return sorted(path for path in found if (path / INDEX).is_file())

    def holds(self, path: Path) -> bool:
        """Whether something is, or lies in, what `fresh` removes."""
        here, path = self.path.resolve(), path.resolve()
        return path == here or any(path.is_relative_to(here / own.name) for own in self._own())

    def start(self, command: Sequence[str], origin: Origin | None, inputs: dict[str, str], fresh: bool) -> None:
        """Write the configuration and manifest, or check that the folder belongs to this very configuration.

        inputs: hashes of what the run reads, by what it is called. With `fresh`, what an earlier run left in the folder
        is removed first, and nothing else.
        """
        path = self.path / CONFIG
        if fresh and path.is_file() and (self.path / MANIFEST).is_file():
            self._clear()
        self.check()
        now = self.config.model_dump(mode="json")
        begun = has_begun(self.path)
        if not begun:
            for note in (ORIGIN, INPUTS):  # of a try that kept nothing else
                (self.path / note).unlink(missing_ok=True)
        if origin:
            origin.remember(self.path)
        self._remember(inputs)
        if not begun:
            write_json(path, now)
        made_by = run_manifest(now, command) | {"processes": self.processes.count}
        write_json(self.path / MANIFEST, made_by)

    def check(self) -> None:
        """ConfigError where the folder belongs to another configuration."""
        changed = changed_since(self.path, self.config)
        if changed:
            raise ConfigError(
                f"{self.path / CONFIG}: this run was started with another value of {changed[0]}"
                f"{f' and {len(changed) - 1} more' if len(changed) > 1 else ''}; choose another folder, or --fresh"
            )

    def _remember(self, inputs: dict[str, str]) -> None:
        """Note what the run reads; ConfigError where that is no longer what it started with."""
        note = self.path / INPUTS
        before = read_object(note) if note.is_file() else inputs
        for name in sorted(before):
            if before[name] != inputs.get(name):
                raise ConfigError(
                    f"{name} has changed since the run in {self.path} started; choose another folder, or --fresh"
                )
        write_json(note, inputs)

    def _own(self) -> list[Path]:
        return [*self.epochs, *(self.path / name for name in OWN)]

    def _clear(self) -> None:
        for path in self._own():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def stage(self, name: str) -> Path:
        """The folder of a stage: its resumable states."""
        return self.path / "stages" / name.replace("/", "-")

    def done(self, name: str) -> Path:
        """What a finished stage leaves."""
        return self.stage(name) / "done"

    def is_done(self, name: str) -> bool:
        """Whether a stage is finished."""
        return (self.done(name) / INDEX).is_file()

    def track(self, stage: str) -> None:
        """Begin to track a stage; before its first step, or it would be in vain."""
        if self.tracker:
            self.tracker.open(stage)

    def record(self, record: dict[str, Any]) -> None:
        """One line of diagnostics.jsonl, which the tracker gets as well."""
        if not self.processes.is_main:
            return
        append_jsonl(self.path / LOG, record)
        if self.tracker:
            self.tracker.log(record)

    def close(self) -> None:
        """End what is tracked."""
        if self.tracker:
            self.tracker.close()
