"""A folder of safetensors files with a JSON index that holds each file's size and SHA-256."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentwire.core.atomic import atomic_dir, read_json, write_json
from latentwire.core.errors import CheckpointError
from latentwire.core.hashing import sha256_file

INDEX = "checkpoint.json"
FORMAT = 1


def save_folder(
    folder: Path, tensors: dict[str, dict[str, Tensor]], info: dict[str, Any], *, dtype: torch.dtype | None = None
) -> None:
    """Write {file stem: tensors} and what describes them; floating tensors are stored as `dtype` if one is given.

    `info["files"]` is added: {file: {bytes, sha256}}. A folder that was there is replaced only when all is written.
    """
    with atomic_dir(folder) as temporary:
        files = {}
        for stem, group in tensors.items():
            path = temporary / f"{stem}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                save_file({k: _stored(v, dtype) for k, v in group.items()}, path)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{folder}: could not be written: {error}") from error
            files[f"{stem}.safetensors"] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        write_json(temporary / INDEX, {"format": FORMAT, **info, "files": files})


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu()
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor.contiguous()


def read_info(folder: Path) -> dict[str, Any]:
    """The index of a checkpoint folder."""
    path = folder / INDEX
    if not path.is_file():
        raise CheckpointError(f"{folder}: not a checkpoint (no {INDEX})")
    try:
        info = read_json(path)
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT or not isinstance(info.get("files"), dict):
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT}")
    return info


def load_folder(folder: Path, stems: list[str] | None = None) -> dict[str, dict[str, Tensor]]:
    """Read {file stem: tensors} back, all files or some; each must have the size and hash that the index gives."""
    files = read_info(folder)["files"]
    out = {}
    for name, expected in files.items():
        stem = name.removesuffix(".safetensors")
        if stems is not None and stem not in stems:
            continue
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        if path.stat().st_size != expected["bytes"]:
            raise CheckpointError(
                f"{path}: truncated or changed ({path.stat().st_size} bytes, not {expected['bytes']})"
            )
        if sha256_file(path) != expected["sha256"]:
            raise CheckpointError(f"{path}: its SHA-256 is not the one in {INDEX}: the file was changed")
        try:
            out[stem] = load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a safetensors file: {error}") from error
    return out
