"""A system in a checkpoint: saved, loaded whole, or one end of its wire alone.

DIR/checkpoint.json            format, files with sizes and SHA-256, resolved configuration, manifest
    sender.safetensors                     encoder, latent refiner and the sender's LoRA, if it has them
    receivers/<name>.safetensors           reader, LoRA that reads latents, other features
    baselines/<name>-<adapter>.safetensors other LoRA: text, token_budget, llmlingua
    codecs/<codec>.safetensors             codebooks of learned codecs
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from latentwire.backbone.devices import check_devices, prepare_device
from latentwire.backbone.turns import Turns
from latentwire.checkpoint.index import find_checkpoint, load_config_of, sender_fingerprint
from latentwire.checkpoint.parts import adapter_stem, codebook_stems, reader_stem, receiver_of, register_codebooks
from latentwire.checkpoint.tensors import checked_file, load_folder, read_info, save_folder
from latentwire.config import Config
from latentwire.core.manifest import run_manifest
from latentwire.core.names import ADAPTERS, BASELINES, LATENT, READERS, SENDER, TEXT, file_of, stem_of
from latentwire.encoder.registry import build_encoder
from latentwire.model.receiver import Receiver
from latentwire.model.sender import Sender
from latentwire.model.system import LatentWire, load_lm, load_receiver_state, load_sender_state
from latentwire.wire.default import default_codec

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


def load_checkpoint(folder: str | Path, config: Config | None = None, only: Sequence[str] | None = None) -> LatentWire:
    """Build the system that a checkpoint describes, or only some of its receivers, and take up its state.

    folder: as in `Sender.from_pretrained`.
    """
    folder = find_checkpoint(folder)
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
    return [SENDER, *codebook_stems(folder), *(adapter_stem(name, adapter) for name in only for adapter in ADAPTERS)]


def reload_checkpoint(system: LatentWire, folder: Path) -> None:
    """Give a system the state of a checkpoint of its own: as it is kept, not as it was in memory."""
    _take_up(system, folder, load_folder(folder))


def _take_up(system: LatentWire, folder: Path, state: dict[str, dict[str, torch.Tensor]]) -> None:
    system.load_state_dict(state)
    system.sender.fingerprint = sender_fingerprint(folder)
    for receiver in system.receivers.values():
        receiver.sender = system.sender.fingerprint


def load_sender(folder: str | Path, changes: Mapping[str, Any] | None = None) -> Sender:
    """See `Sender.from_pretrained`."""
    folder = find_checkpoint(folder)
    config = load_config_of(folder, changes)
    default_codec(config)
    state = load_folder(folder, [SENDER, *codebook_stems(folder)])
    sender = Sender(build_encoder(config, prepare_device(config)), config)
    load_sender_state(sender, state)
    sender.fingerprint = sender_fingerprint(folder)
    return sender


def load_receivers(
    folder: str | Path, names: Iterable[str], changes: Mapping[str, Any] | None = None
) -> dict[str, Receiver]:
    """Some receivers of a checkpoint, which take turns on the device where `system.sequential_models` asks for it."""
    turns = Turns() if load_config_of(find_checkpoint(folder), changes).system.sequential_models else None
    return {name: load_receiver(folder, name, changes, turns) for name in names}


def load_receiver(
    folder: str | Path, name: str, changes: Mapping[str, Any] | None = None, turns: Turns | None = None
) -> Receiver:
    """See `Receiver.from_pretrained`. `turns` are those of several that are loaded one by one."""
    folder = find_checkpoint(folder)
    config = load_config_of(folder, changes)
    name, model = receiver_of(folder, config, name)
    state = load_folder(folder, [*(adapter_stem(name, adapter) for adapter in (LATENT, TEXT)), *codebook_stems(folder)])
    register_codebooks(state)
    receiver = Receiver(name, load_lm(model, config, prepare_device(config), turns), config)
    load_receiver_state(receiver, state)
    receiver.sender = sender_fingerprint(folder)
    return receiver
