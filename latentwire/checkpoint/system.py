"""Checkpoints for use: everything but the language models themselves, with the configuration that made it.

DIR/checkpoint.json            format, files with sizes and SHA-256, resolved configuration, manifest
    sender.safetensors         encoder, and the sender's LoRA if it has one
    receivers/<name>.safetensors           reader and LoRA
    baselines/<name>-text.safetensors      tuned baselines
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from latentwire.checkpoint.tensors import INDEX, load_folder, read_info, save_folder
from latentwire.config import Config, config_from_dict
from latentwire.core.errors import CheckpointError
from latentwire.core.manifest import run_manifest
from latentwire.model.system import LatentWire, check_devices


def save_checkpoint(
    folder: Path, system: LatentWire, command: Sequence[str] = (), extra: dict[str, Any] | None = None
) -> None:
    """Write a checkpoint in bf16; the training states keep fp32."""
    config = system.config.model_dump(mode="json")
    info = {"config": config, "manifest": run_manifest(None, list(command)), **(extra or {})}
    save_folder(folder, system.state_dict(), info, dtype=torch.bfloat16)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at a path: the folder itself, or the last one of a run's folder."""
    for folder in (path, path / "last"):
        if (folder / INDEX).is_file():
            return folder
    raise CheckpointError(f"{path}: no checkpoint there (no {INDEX}, nor a folder last/ with one)")


def load_config_of(folder: Path, changes: dict[str, Any] | None = None) -> Config:
    """The configuration that a checkpoint was made with, with some dotted keys changed."""
    info = read_info(folder)
    if "config" not in info:
        raise CheckpointError(f"{folder}: a training state, not a checkpoint (those are epoch1/, ..., last/ of a run)")
    return config_from_dict(info["config"], str(folder), changes or {})


def load_checkpoint(folder: Path, config: Config | None = None, only: Sequence[str] | None = None) -> LatentWire:
    """Build the system that a checkpoint describes, or only some of its receivers, and take up its state."""
    config = config or load_config_of(folder)
    check_devices(config.system)
    state = load_folder(folder)
    system = LatentWire.build(config, only)
    system.load_state_dict(state)
    return system
