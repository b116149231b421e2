"""Trackers: the lines of diagnostics.jsonl, also in TensorBoard, Trackio or Weights & Biases.

Accelerate's own classes talk to them. The latter two keep to their own environment variables: with WANDB_MODE=offline
nothing leaves the machine.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from latentwire.config import Config
from latentwire.core.errors import ConfigError

PROJECT = "latentwire"


class Tracker:
    """Logs the records of a run. Each stage is tracked as a run of its own, because its steps count from 1.

    TensorBoard's files lie in <run>/tensorboard/<stage>; elsewhere it is <run>/<stage> in the project `latentwire`.
    ConfigError where the tracker's package is missing, or where it cannot be started. Once it was, no fault of its own
    ends a training: the rest of the stage is then not tracked, and a warning says so.
    """

    def __init__(self, name: str, folder: Path, config: Config):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"diagnostics.report_to: {name} is not installed (pip install {name}, or 'none' for no tracker)"
            )
        self.name = name
        self.folder = folder
        self.config = config.model_dump(mode="json")
        self.stage: str | None = None
        self.current: Any = None
        self.started = False

    def open(self, stage: str) -> None:
        """Begin to track a stage, and end the one before."""
        self.close()
        PartialState(cpu=not torch.cuda.is_available())  # as `Processes` does; the trackers ask it
        kind, label = LOGGER_TYPE_TO_CLASS[self.name], stage.replace("/", "-")
        self.stage = stage
        with self._faults("could not be started"):
            if kind.requires_logging_directory:
                self.current = kind(label, logging_dir=self.folder / self.name)
                self.current.start()
                shown = json.dumps(self.config, indent=2).replace("\n", "\n    ")
                self.current.log({"config": f"    {shown}"}, step=0)
            else:
                run = self.folder.name
                self.current = kind(PROJECT, name=f"{run}/{label}", group=run, config=self.config)
                self.current.start()
            self.started = True

    def log(self, record: dict[str, Any]) -> None:
        """Log the numbers of one record; one without a step stands for its whole stage."""
        if record["stage"] != self.stage:
            self.open(record["stage"])
        if self.current is not None:
            with self._faults("failed"):
                self.current.log(dict(numbers(record)), step=record.get("step"))
        if "step" not in record:
            self.close()

    def close(self) -> None:
        """End the stage that is tracked, if there is one."""
        current, self.stage, self.current = self.current, None, None
        if current is not None:
            with self._faults("failed"):
                current.finish()

    @contextmanager
    def _faults(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each has errors of its own
            self.current = None
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            said = f"diagnostics.report_to: {self.name} {what}: {reason}"
            if not self.started:  # all of them are about its settings
                self.stage = None
                raise ConfigError(said) from error
            print(f"warning: {said}; the rest of the stage is not tracked", file=sys.stderr, flush=True)


def tracker_of(config: Config, folder: Path) -> Tracker | None:
    """The tracker that diagnostics.report_to asks for."""
    name = config.diagnostics.report_to
    return None if name == "none" else Tracker(name, folder, config)


def numbers(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """A record's numbers by name. What was measured of a step is named after its receiver as well: they take turns."""
    whose = f"/{record['receiver']}" if "receiver" in record else ""
    for key, value in record.items():
        if isinstance(value, dict):  # R² of each receiver
            yield from ((f"{key}/{name}", number) for name, number in value.items() if isinstance(number, int | float))
        elif isinstance(value, int | float) and key != "step":
            yield key if "/" in key else f"{key}{whose}", float(value)
