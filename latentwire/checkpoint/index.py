"""What a checkpoint's index says without its tensors: where it is, its configuration, its sender."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentwire.checkpoint.hub import NAME, fetch, hub_name
from latentwire.checkpoint.tensors import read_info
from latentwire.config import Config, config_from_dict
from latentwire.core.errors import CheckpointError, ConfigError
from latentwire.core.hashing import stable_hash
from latentwire.core.names import CODEBOOKS, INDEX, SENDER, file_of


def find_checkpoint(name: str | Path) -> Path:
    """The checkpoint of a name: the folder itself, the last one of a run's folder, or a repository on the Hub.

    Of a repository (org/name or org/name@revision) only the index is fetched; other files follow when they are read.
    """
    path = Path(name)
    for folder in (path, path / "last"):
        if (folder / INDEX).is_file():
            return folder
    if named := hub_name(path):
        return fetch(named[0], INDEX, named[1]).parent
    local = f"; {path.parts[0]}/ is a folder here, so the Hub was not asked" if NAME.fullmatch(path.as_posix()) else ""
    raise CheckpointError(f"{path}: no checkpoint there (no {INDEX}, nor a folder last/ with one{local})")


def load_config_of(folder: Path, changes: Mapping[str, Any] | None = None) -> Config:
    """The configuration that a checkpoint was made with, with some dotted keys changed.

    `evaluation.rivals` is empty unless it is among them: rivals need packages that a checkpoint does not.
    """
    info = read_info(folder)
    if "config" not in info:
        raise CheckpointError(f"{folder}: a training state, not a checkpoint (those are epoch1/, ..., last/ of a run)")
    config = config_from_dict(info["config"], str(folder), {"evaluation.rivals": []} | dict(changes or {}), kept=True)
    if config.encoder.latent_private_len and changes:
        trained = config_from_dict(info["config"], str(folder), {}, kept=True).model.chosen.keys()
        if trained != config.model.chosen.keys():
            raise ConfigError(
                f"model.receivers: {folder} sets latents aside for each of its receivers, so it needs all of them: "
                f"{', '.join(trained)}"
            )
    return config


def codebooks_of(folder: Path) -> set[str]:
    """The learned codecs of which a checkpoint has codebooks."""
    return {Path(name).stem for name in read_info(folder)["files"] if name.startswith(CODEBOOKS)}


def sender_fingerprint(folder: Path) -> bytes:
    """8 bytes that name a checkpoint's sender: a hash of its weights' file and of its configuration as kept there.

    Messages carry it, and readers of other senders refuse them. It needs neither weights nor models, and does not
    change with what is overridden for a machine, such as the path of a model.
    """
    info = read_info(folder)
    file = file_of(SENDER)
    if file not in info["files"]:
        raise CheckpointError(f"{folder}: the checkpoint has no file {file}")
    whole = stable_hash({"weights": info["files"][file]["sha256"], "encoder": info["config"]["encoder"]})
    return bytes.fromhex(whole)[:8]
