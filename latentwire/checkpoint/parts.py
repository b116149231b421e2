"""What is in the files of a checkpoint, {file stem: tensors}, each tensor under the name of its part."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from latentwire.checkpoint.index import codebooks_of
from latentwire.checkpoint.tensors import load_folder, read_info
from latentwire.config import Config, some_receivers
from latentwire.core.errors import CheckpointError, ConfigError
from latentwire.core.names import BASELINES, CODEBOOKS, LATENT, READERS, file_of
from latentwire.wire.codebook import FORMS, Codebook, form_of, remember

State = dict[str, dict[str, Tensor]]


def reader_stem(receiver: str) -> str:
    """The file of a receiver's reader and features."""
    return f"{READERS}{receiver}"


def receiver_of(folder: Path, config: Config, receiver: str) -> tuple[str, str]:
    """The name, which may be cut short, and the model of a checkpoint's receiver; CheckpointError where it has none."""
    try:
        ((name, model),) = some_receivers(config.model.chosen, [receiver], str(folder)).items()
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if file_of(reader_stem(name)) not in read_info(folder)["files"]:
        raise CheckpointError(f"{folder} has no receiver {name!r}: its file is not among the checkpoint's")
    return name, model


def adapter_stem(receiver: str, adapter: str) -> str:
    """The file of a receiver's LoRA by the adapter's name: what reads latents lies with the reader, others apart."""
    return reader_stem(receiver) if adapter == LATENT else f"{BASELINES}{receiver}-{adapter}"


def merge(**parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """One group of tensors from several parts."""
    return {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}


def part_of(group: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of one part of a group."""
    return {k.removeprefix(f"{part}."): v for k, v in group.items() if k.startswith(f"{part}.")}


class Part(Protocol):
    """What has tensors in a checkpoint: a module, or LoRA on one."""

    def load_state_dict(self, state_dict: dict[str, Tensor], /) -> Any: ...


def load_part(module: Part, tensors: dict[str, Tensor], where: str) -> None:
    """Take up a module's tensors, in fp32; CheckpointError where they do not fit."""
    try:
        module.load_state_dict({k: v.float() for k, v in tensors.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{where}: {str(error).splitlines()[-1].strip()}") from error


def codebook_stems(folder: Path) -> list[str]:
    """The files of a checkpoint's codebooks."""
    return [f"{CODEBOOKS}{kind}" for kind in sorted(codebooks_of(folder))]


def load_codebooks(folder: Path) -> dict[str, Codebook]:
    """`register_codebooks` of a checkpoint, without reading its other files."""
    return register_codebooks(load_folder(folder, codebook_stems(folder)))


def register_codebooks(state: State) -> dict[str, Codebook]:
    """The codebooks of a state, by codec; from now on messages that name them can be decoded in this process.

    CheckpointError where one is damaged.
    """
    books = {}
    for stem in (stem for stem in state if stem.startswith(CODEBOOKS)):
        known = {name: tensor for name, tensor in state[stem].items() if name in FORMS}
        for name, tensor in known.items():
            wanted = np.dtype(form_of(name, known))
            if str(tensor.dtype) != f"torch.{wanted}":
                raise CheckpointError(f"{stem}: {name} is {tensor.dtype}, not {wanted}")
        kind = stem.removeprefix(CODEBOOKS)
        books[kind] = remember(Codebook(kind, {name: tensor.numpy() for name, tensor in known.items()}))
    return books
