"""Latents to the keys and values that another engine puts into its cache. It holds a reader, and no model's weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from latentwire.backbone.rotary import Skeleton
from latentwire.checkpoint.index import find_checkpoint, load_config_of
from latentwire.checkpoint.parts import load_part, part_of
from latentwire.checkpoint.tensors import load_folder, read_info
from latentwire.config import Config
from latentwire.core.errors import CheckpointError, ConfigError
from latentwire.reader.slots import SlotReader
from latentwire.wire.codecs.base import Array

SLOTS_ALONE = {"use_lora", "use_deep_prefix", "use_gist_head", "use_latent_refiner"}
"""Features with which all that a receiver has of a message are its slots."""


class SlotMaker:
    """The slots of one receiver's messages, the same as `Receiver` makes.

    model: the receiver's model, as in `load_model`; of it only the configuration is read. dtype: that of the cache.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        receiver: str,
        model: str,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ):
        tensors = reader_tensors(checkpoint, receiver)
        config = load_config_of(find_checkpoint(Path(checkpoint)))
        check_features(config)
        self.skeleton = Skeleton(model, dtype, device)
        self.reader = SlotReader.of(self.skeleton.anatomy, config, len(tensors["head"])).to(self.skeleton.device)
        load_part(self.reader, tensors, f"receivers/{receiver}")

    @torch.no_grad()
    def slots(self, latents: Array) -> list[tuple[Tensor, Tensor]]:
        """Rotated keys and values of one text, (head + M, kv_heads, head_dim) each, one pair a layer."""
        z = torch.as_tensor(latents, device=self.skeleton.device)[None]
        counts = torch.tensor([z.shape[1]], device=z.device)
        context = self.reader.context(self.skeleton, self.reader.generate(z, counts), counts)
        return [(layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)) for layer in context.cache.layers]


def check_features(config: Config) -> None:
    """ConfigError where a receiver needs more of a message than its slots."""
    if not config.features.use_deep_prefix:
        raise ConfigError("features.use_deep_prefix is off: vectors at the input go to vLLM as prompt_embeds")
    for name, on in config.features:
        if on and name not in SLOTS_ALONE:
            raise ConfigError(f"features.{name}: what it adds to the message's slots cannot be given to vLLM")


def reader_tensors(checkpoint: str | Path, receiver: str) -> dict[str, Tensor]:
    """The tensors of a receiver's reader."""
    folder = find_checkpoint(Path(checkpoint))
    stem = f"receivers/{receiver}"
    if f"{stem}.safetensors" not in read_info(folder)["files"]:
        raise CheckpointError(f"{folder} has no receiver {receiver!r}")
    return part_of(load_folder(folder, [stem])[stem], "reader")


def head_length(checkpoint: str | Path, receiver: str) -> int:
    """Tokens of the constant head before a receiver's latents."""
    return len(reader_tensors(checkpoint, receiver)["head"])
