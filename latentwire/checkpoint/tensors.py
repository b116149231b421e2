"""A folder of safetensors files with a JSON index that holds each file's size and SHA-256.

Matrices may be kept in 8 bits, which halves a checkpoint to be passed on.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentwire.checkpoint.hub import fetch_beside
from latentwire.core.atomic import atomic_dir
from latentwire.core.errors import CheckpointError
from latentwire.core.hashing import sha256_file
from latentwire.core.json_files import read_object, write_json
from latentwire.core.names import INDEX, file_of, stem_of
from latentwire.wire.codecs.integers import quantize

FORMAT = 1
PACK, PACK_FROM = 64, 1 << 12
"""Numbers that share a scale, and the smallest matrix that is packed: a LoRA of low rank is large enough."""
SCALE = ":scale"


def save_folder(
    folder: Path,
    tensors: dict[str, dict[str, Tensor]],
    info: dict[str, Any],
    *,
    dtype: torch.dtype | None = None,
    pack: bool = False,
    copied: Mapping[str, Path] = MappingProxyType({}),
    keep_others: bool = False,
) -> None:
    """Write {file stem: tensors} and what describes them; floating tensors are stored as `dtype` if one is given.

    With `pack`, matrices take 8 bits a number instead (see `_packed`). `copied` files, by the name that they get here,
    are taken over byte by byte.

    `info["files"]` is added: {file: {bytes, sha256}}. A folder that was there is replaced only when all is written;
    what else lay in it, such as an evaluation, stays where the files that both have are the same, or, with
    `keep_others`, in any case.
    """
    with atomic_dir(folder) as temporary:
        files = {}
        for name, source in copied.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, temporary / name)
            files[name] = _described(temporary / name)
        for stem, group in tensors.items():
            path = temporary / file_of(stem)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                stored = _packed(group) if pack else group
                save_file({k: _stored(v, dtype) for k, v in stored.items()}, path)
                path.chmod(0o644)  # safetensors writes files that only their owner may read
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{folder}: could not be written: {error}") from error
            files[file_of(stem)] = _described(path)
        write_json(temporary / INDEX, {"format": FORMAT, **info, "files": files})
        _keep_beside(folder, temporary, files, keep_others)


def _keep_beside(folder: Path, new: Path, files: Mapping[str, Any], always: bool) -> None:
    """Take over what lies beside the files of a folder, if the new ones are those or more or fewer of them."""
    try:
        before = read_info(folder)["files"]
    except CheckpointError:
        return
    both = before.keys() & files.keys()
    if not always and (not both or any(before[name] != files[name] for name in both)):
        return
    for path in folder.iterdir():
        if path.is_file() and path.name not in before and not (new / path.name).exists():
            shutil.copy2(path, new / path.name)


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().cpu()
    if dtype is not None and tensor.dtype == torch.float32:
        tensor = tensor.to(dtype)
    return tensor.contiguous()


def _packed(group: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices in 8 bits: `name` as int8 levels, `name:scale` with one fp16 scale for each PACK numbers in a row."""
    out = {}
    for name, tensor in group.items():
        # What is in half precision or in bytes already is a codebook, which is named by its content.
        large = tensor.ndim == 2 and tensor.numel() >= PACK_FROM and tensor.numel() % PACK == 0
        if large and tensor.dtype not in (torch.float16, torch.int8):
            levels, codes = quantize(tensor.detach().cpu().float().numpy().reshape(-1, PACK))
            out[name] = torch.from_numpy(levels).reshape(tensor.shape)
            out[name + SCALE] = torch.from_numpy(codes.view(np.float16))[..., 0]
        else:
            out[name] = tensor
    return out


def _unpacked(group: dict[str, Tensor]) -> dict[str, Tensor]:
    scales = {name.removesuffix(SCALE): group.pop(name) for name in list(group) if name.endswith(SCALE)}
    for name, scale in scales.items():
        if name not in group or group[name].numel() != PACK * scale.numel():
            raise CheckpointError(f"{name} does not go with its scales")
        levels = group[name].float().view(-1, PACK)
        group[name] = (levels * scale.float().view(-1, 1)).view_as(group[name])
    return group


def read_info(folder: Path) -> dict[str, Any]:
    """The index of a checkpoint folder."""
    path = folder / INDEX
    if not path.is_file():
        raise CheckpointError(f"{folder}: not a checkpoint (no {INDEX})")
    info = read_object(path, CheckpointError)
    if info.get("format") != FORMAT or not isinstance(info.get("files"), dict):
        raise CheckpointError(f"{path}: not a checkpoint of format {FORMAT}")
    for name, file in info["files"].items():
        if not isinstance(file, dict) or not {"bytes", "sha256"} <= set(file):
            raise CheckpointError(f"{path}: the entry of {name} has no size and hash")
        # Files may be copied under these names, and the index may be a stranger's.
        if PureWindowsPath(name).anchor or ".." in PureWindowsPath(name).parts:
            raise CheckpointError(f"{path}: {name!r} is not within the checkpoint")
    return info


def tensor_names(folder: Path, stem: str) -> list[str]:
    """The names of a file's tensors, none of which is read."""
    name = file_of(stem)
    path = checked_file(folder, name, read_info(folder)["files"][name])
    with safe_open(path, "pt") as file:
        return list(file.keys())


def checked_file(folder: Path, name: str, expected: Mapping[str, Any]) -> Path:
    """The path of a file that has the size and hash of its entry in the index; fetched if it is still on the Hub."""
    path = folder / name
    if not path.is_file():
        fetch_beside(folder, name)
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    if path.stat().st_size != expected["bytes"]:
        raise CheckpointError(f"{path}: truncated or changed ({path.stat().st_size} bytes, not {expected['bytes']})")
    if sha256_file(path) != expected["sha256"]:
        raise CheckpointError(f"{path}: its SHA-256 is not the one in {INDEX}: the file was changed")
    return path


def load_folder(folder: Path, stems: list[str] | None = None) -> dict[str, dict[str, Tensor]]:
    """Read {file stem: tensors} back, all files or some; each must have the size and hash that the index gives."""
    files = read_info(folder)["files"]
    out = {}
    for name, expected in files.items():
        stem = stem_of(name)
        if stems is not None and stem not in stems:
            continue
        path = checked_file(folder, name, expected)
        try:
            out[stem] = _unpacked(load_file(path))
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a safetensors file: {error}") from error
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return out
