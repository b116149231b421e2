"""Checkpoints for use: everything but the language models themselves, with the configuration that made it.

DIR/checkpoint.json            format, files with sizes and SHA-256, resolved configuration, manifest
    sender.safetensors                     encoder, latent refiner and the sender's LoRA, if it has them
    receivers/<name>.safetensors           reader, LoRA that reads latents, other features
    baselines/<name>-<adapter>.safetensors other LoRA: text, token_budget, llmlingua
    codecs/<codec>.safetensors             codebooks of learned codecs
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from latentwire.checkpoint.index import load_config_of, sender_fingerprint
from latentwire.checkpoint.parts import adapter_stem, codebook_stems, reader_stem
from latentwire.checkpoint.tensors import checked_file, load_folder, read_info, save_folder
from latentwire.config import Config
from latentwire.core.manifest import run_manifest
from latentwire.core.names import ADAPTERS, BASELINES, READERS, file_of, stem_of
from latentwire.model.system import LatentWire, check_devices

OF_RECEIVERS = (READERS, BASELINES)
"""Files with these beginnings belong to one receiver; the others are the sender's."""


def save_checkpoint(folder: Path, system: LatentWire, command: Sequence[str] = (), before: Path | None = None) -> None:
    """Write a checkpoint in bf16; the training states keep fp32.

    before: the checkpoint that the system was begun from; files of what has not changed are taken over as they are.
    With curriculum.train_only these are its sender and all receivers that are not in the system, so that the
    fingerprint stays and messages that were sent before are still read.
    """
    config, state = system.config.model_dump(mode="json"), system.state_dict()
    copied: dict[str, Path] = {}
    if before is not None and system.config.curriculum.train_only:
        there = read_info(before)
        state = {stem: group for stem, group in state.items() if stem.startswith(OF_RECEIVERS)}
        others = {n: file for n, file in there["files"].items() if stem_of(n) not in state}
        copied = {name: checked_file(before, name, file) for name, file in others.items()}
        config["encoder"] = there["config"]["encoder"]
        config["features"]["use_lora"] |= there["config"]["features"]["use_lora"]
    if before is not None:
        for name in read_info(before)["files"]:
            stem = stem_of(name)
            if stem in state and _equal(state[stem], load_folder(before, [stem])[stem]):
                del state[stem]
                copied[name] = before / name  # which has just been checked
    info = {"config": config, "manifest": run_manifest(None, list(command))}
    save_folder(folder, state, info, dtype=torch.bfloat16, copied=copied)


def take_baselines(folder: Path, last: Path) -> None:
    """Give a checkpoint the tuned baselines of a later one of the same run; what else is there stays byte for byte."""
    info, theirs = read_info(folder), read_info(last)["files"]
    new = {name: file for name, file in theirs.items() if name.startswith(BASELINES)}
    if new.items() <= info["files"].items():
        return
    copied = {name: checked_file(folder, name, file) for name, file in info.pop("files").items() if name not in new}
    copied |= {name: checked_file(last, name, file) for name, file in new.items()}
    save_folder(folder, {}, info, copied=copied, keep_others=True)


def _equal(group: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return group.keys() == other.keys() and all(
        tensor.shape == other[name].shape and tensor.cpu().float().equal(other[name].float())
        for name, tensor in group.items()
    )


def load_checkpoint(folder: Path, config: Config | None = None, only: Sequence[str] | None = None) -> LatentWire:
    """Build the system that a checkpoint describes, or only some of its receivers, and take up its state."""
    config = config or load_config_of(folder)
    check_devices(config)
    state = load_folder(folder, _stems_of(folder, only))
    system = LatentWire.build(config, only)
    _take_up(system, folder, state)
    return system


def _stems_of(folder: Path, only: Sequence[str] | None) -> list[str] | None:
    """The files that the sender and some receivers need; None, all, also where one of these was not trained."""
    there = read_info(folder)["files"]
    if not only or any(file_of(reader_stem(name)) not in there for name in only):
        return None
    return ["sender", *codebook_stems(folder), *(adapter_stem(name, adapter) for name in only for adapter in ADAPTERS)]


def reload_checkpoint(system: LatentWire, folder: Path) -> None:
    """Give a system the state of a checkpoint of its own: as it is kept, not as it was in memory."""
    _take_up(system, folder, load_folder(folder))


def _take_up(system: LatentWire, folder: Path, state: dict[str, dict[str, torch.Tensor]]) -> None:
    system.load_state_dict(state)
    system.sender.fingerprint = sender_fingerprint(folder)
    for receiver in system.receivers.values():
        receiver.sender = system.sender.fingerprint
