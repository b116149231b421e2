"""The sender alone, or one receiver alone, from a checkpoint: the two ends of a wire in different processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from latentwire.backbone.turns import Turns
from latentwire.checkpoint.index import find_checkpoint, load_config_of, sender_fingerprint
from latentwire.checkpoint.parts import adapter_stem, codebook_stems, codebooks_in, receiver_of
from latentwire.checkpoint.tensors import load_folder
from latentwire.core.names import LATENT, TEXT
from latentwire.encoder.registry import build_encoder
from latentwire.model.receiver import Receiver
from latentwire.model.sender import Sender
from latentwire.model.system import load_lm, load_receiver_state, load_sender_state, prepare_device
from latentwire.wire.default import default_codec


def load_sender(folder: str | Path, changes: Mapping[str, Any] | None = None) -> Sender:
    """See `Sender.from_pretrained`."""
    folder = find_checkpoint(Path(folder))
    config = load_config_of(folder, changes)
    default_codec(config)
    state = load_folder(folder, ["sender", *codebook_stems(folder)])
    sender = Sender(build_encoder(config, prepare_device(config)), config)
    load_sender_state(sender, state)
    sender.fingerprint = sender_fingerprint(folder)
    return sender


def load_receivers(
    folder: str | Path, names: Iterable[str], changes: Mapping[str, Any] | None = None
) -> dict[str, Receiver]:
    """Some receivers of a checkpoint, which take turns on the device where `system.sequential_models` asks for it."""
    turns = Turns() if load_config_of(find_checkpoint(Path(folder)), changes).system.sequential_models else None
    return {name: load_receiver(folder, name, changes, turns) for name in names}


def load_receiver(
    folder: str | Path, name: str, changes: Mapping[str, Any] | None = None, turns: Turns | None = None
) -> Receiver:
    """See `Receiver.from_pretrained`. `turns` are those of several that are loaded one by one."""
    folder = find_checkpoint(Path(folder))
    config = load_config_of(folder, changes)
    name, model = receiver_of(folder, config, name)
    state = load_folder(folder, [*(adapter_stem(name, adapter) for adapter in (LATENT, TEXT)), *codebook_stems(folder)])
    codebooks_in(state)
    receiver = Receiver(name, load_lm(model, config, prepare_device(config), turns), config)
    load_receiver_state(receiver, state)
    receiver.sender = sender_fingerprint(folder)
    return receiver
