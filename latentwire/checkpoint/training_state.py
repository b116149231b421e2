"""Resumable states of a running stage: folders step_000100, step_000200, ... under the stage's folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from latentwire.checkpoint.tensors import load_folder, read_info, save_folder
from latentwire.core.names import INDEX

OPTIMIZER = "optimizer"


@dataclass
class TrainingState:
    """Steps done, what is trained as {file stem: tensors}, and the optimizer's moments."""

    step: int
    weights: dict[str, dict[str, Tensor]]
    optimizer: dict[str, Tensor]


def save_state(folder: Path, state: TrainingState) -> Path:
    """Write a state; returns its folder."""
    path = folder / f"step_{state.step:06d}"
    save_folder(path, {**state.weights, OPTIMIZER: state.optimizer}, {"step": state.step})
    return path


def load_state(path: Path) -> TrainingState:
    """Read a state back."""
    weights = load_folder(path)
    optimizer = weights.pop(OPTIMIZER, {})
    return TrainingState(read_info(path)["step"], weights, optimizer)


def all_states(folder: Path) -> list[Path]:
    """Complete states under a folder, oldest first."""
    states = (p for p in folder.glob("step_*") if (p / INDEX).is_file())
    return sorted(states, key=lambda p: (len(p.name), p.name))  # beyond a million, numbers have more digits


def latest_state(folder: Path) -> Path | None:
    """The newest complete state, if any."""
    states = all_states(folder)
    return states[-1] if states else None


def prune_states(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` states."""
    states = all_states(folder)
    for path in states[: max(0, len(states) - keep)]:
        shutil.rmtree(path)
