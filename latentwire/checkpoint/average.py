"""The mean of checkpoints that went on from the same weights: it often reads better than each of them.

Technique: model soups (Wortsman et al. 2022, arXiv:2203.05482) and, of a checkpoint and what came of it, WiSE-FT
(Wortsman et al. 2021, arXiv:2109.01903).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentwire.checkpoint.export import check_target, histories, lineage, training_log
from latentwire.checkpoint.index import load_config_of
from latentwire.checkpoint.models import other_models
from latentwire.checkpoint.parts import State
from latentwire.checkpoint.tensors import checked_file, load_folder, read_info, save_folder
from latentwire.config.form import unlike_forms
from latentwire.core.atomic import atomic_dir
from latentwire.core.errors import CheckpointError, ConfigError
from latentwire.core.json_files import mapping_at, write_jsonl
from latentwire.core.manifest import run_manifest
from latentwire.core.names import CODEBOOKS, EXPORTED_LOG, SENDER, file_of, stem_of
from latentwire.wire.codecs import LearnedCodec, parse_codec


def average(folders: Sequence[Path], out: Path, command: Sequence[str]) -> tuple[list[str], int]:
    """Write the `mean` of checkpoints to a folder; returns what was averaged, and how many files were taken over.

    Its history is that of all of them. `command`: the words that asked for it.
    """
    for folder in folders:
        check_target(out, folder)
    state, shared = mean(folders)
    runs = list(dict.fromkeys(run for folder in folders for run in lineage(folder)))
    of_first = {key: value for key, value in read_info(folders[0]).items() if key in ("config", "data_licence")}
    of_first["config"].get("checkpoint", {}).pop("init_from", None)
    alone = {frozenset(load_config_of(folder).curriculum.train_only or ()) for folder in folders}
    if file_of(SENDER) not in shared or len(alone) > 1:  # else these were trained alone in all, the rest as it is
        mapping_at(of_first["config"], "curriculum").pop("train_only", None)
    if file_of(SENDER) not in shared:  # a new one, which no codebook is for
        of_first["config"].get("codec", {}).pop("learned", None)
        sends = mapping_at(of_first["config"], "evaluation").get("codec")
        if sends and isinstance(parse_codec(sends), LearnedCodec):
            del of_first["config"]["evaluation"]["codec"]
    with atomic_dir(out) as new:
        made: dict[str, Any] = {"manifest": run_manifest(None, command), "earlier": histories(runs)}
        save_folder(new, state, of_first | made, copied=shared)  # in fp32: a mean has more bits than what it is of
        if log := training_log(runs, last=None):
            write_jsonl(new / EXPORTED_LOG, log)
    return sorted(state), len(shared)


def mean(folders: Sequence[Path]) -> tuple[State, dict[str, Path]]:
    """The mean of each file's versions, {file stem: tensors}, and the files that all share, {name: where one lies}.

    A version that several checkpoints hold counts once: of two runs that each trained another receiver of one
    checkpoint (curriculum.train_only), each receiver is the mean of what it was and what it became, and the sender
    stays that of both, with its fingerprint. Codebooks are those of the first checkpoint where all have its sender; one
    that is a mean has none, as codebooks are found for a sender's latents.

    ConfigError where nothing differs; CheckpointError, with the folder, for one of another form than the first, or on
    other models.
    """
    first, *others = folders
    config, files = load_config_of(first), {folder: read_info(folder)["files"] for folder in folders}
    for folder in others:
        for name in sorted(set(_without_books(files[first])) ^ set(_without_books(files[folder]))):
            has, lacks = (first, folder) if name in files[first] else (folder, first)
            raise CheckpointError(f"{lacks}: has no {name}, which {has} has")
        theirs = load_config_of(folder)
        for dotted, own, other in (*other_models(config, theirs), *unlike_forms(config, theirs)):
            raise CheckpointError(f"{folder}: has {dotted} = {other!r}, but {first} has {own!r}")
    state, shared = State(), dict[str, Path]()
    for name in _without_books(files[first]):
        entries = {files[folder][name]["sha256"]: folder for folder in reversed(folders)}
        if len(entries) == 1:
            shared[name] = checked_file(first, name, files[first][name])
            continue
        stem = stem_of(name)
        versions = sorted(entries.values(), key=folders.index)
        state[stem] = _mean([load_folder(folder, [stem])[stem] for folder in versions], versions, name)
    if not state:
        raise ConfigError(f"{', '.join(map(str, folders))}: nothing to average, as they hold the same")
    for name in (name for name in files[first] if name.startswith(CODEBOOKS) and file_of(SENDER) in shared):
        if any(files[folder].get(name, files[first][name]) != files[first][name] for folder in others):
            raise CheckpointError(f"{name}: codebooks of these checkpoints differ, and have no mean")
        shared[name] = checked_file(first, name, files[first][name])
    return state, shared


def _without_books(files: Iterable[str]) -> list[str]:
    return [name for name in files if not name.startswith(CODEBOOKS)]


def _mean(groups: Sequence[dict[str, Tensor]], folders: Sequence[Path], name: str) -> dict[str, Tensor]:
    forms = [{key: tuple(tensor.shape) for key, tensor in group.items()} for group in groups]
    for folder, form in zip(folders, forms, strict=True):
        if form != forms[0]:
            raise CheckpointError(f"{folder / name}: has not the names and shapes of tensors in {folders[0]}")
    out = {}
    for key, tensor in groups[0].items():
        versions = [group[key] for group in groups]
        if tensor.is_floating_point():
            out[key] = torch.stack([version.float() for version in versions]).mean(0)
        elif all(version.equal(tensor) for version in versions):
            out[key] = tensor
        else:  # such as which heads show which tokens
            raise CheckpointError(f"{name}: {key} of these checkpoints differs, and has no mean")
    return out
