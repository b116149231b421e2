"""What vLLM serves of a checkpoint, and what goes into its cache: keys and values by a reader, no model weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from latentwire.backbone.rotary import Skeleton
from latentwire.checkpoint.index import find_checkpoint, load_config_of
from latentwire.checkpoint.parts import adapter_stem, load_part, part_of, reader_stem, receiver_of
from latentwire.checkpoint.tensors import load_folder, read_info, tensor_names
from latentwire.config import Config
from latentwire.core.errors import ConfigError
from latentwire.core.names import LATENT, TEXT, file_of
from latentwire.reader.slots import SlotReader
from latentwire.wire.codecs.base import Array

SERVED = {"use_lora", "use_deep_prefix", "use_gist_head", "use_latent_refiner", "use_sender_lora"}
"""Features with which all that a receiver has of a message is what its reader makes."""


@dataclass(frozen=True)
class Served:
    """A receiver of a checkpoint as vLLM serves it. No tensor is read for this.

    model: the receiver's, as in `load_model`.
    """

    folder: Path
    config: Config
    name: str
    model: str

    @classmethod
    def of(cls, checkpoint: str | Path, receiver: str) -> Served:
        """CheckpointError where there is no such receiver, ConfigError where its features cannot be served."""
        folder = find_checkpoint(checkpoint)
        config = load_config_of(folder)
        name, model = receiver_of(folder, config, receiver)
        for feature, on in config.features:
            if on and feature not in SERVED:
                raise ConfigError(f"features.{feature}: what it adds to a message cannot be given to vLLM")
        return cls(folder, config, name, model)

    @property
    def slots(self) -> bool:
        """Whether it reads slots, not vectors at its input."""
        return self.config.features.use_deep_prefix

    def need_slots(self) -> None:
        """ConfigError where it reads vectors at its input."""
        if not self.slots:
            raise ConfigError("features.use_deep_prefix is off: vectors at the input go to vLLM as prompt_embeds")

    @cached_property
    def adapters(self) -> dict[str, str]:
        """The files of its LoRA, by the name under which a server answers with it: from messages, then from text.

        Without LoRA both are answered under the receiver's own name; a checkpoint need not have a text baseline.
        """
        stems = {f"{self.name}-{adapter}": adapter_stem(self.name, adapter) for adapter in (LATENT, TEXT)}
        files = read_info(self.folder)["files"] if self.config.features.use_lora else {}
        return {  # where a receiver was added later, some may have LoRA and others not
            name: stem
            for name, stem in stems.items()
            if file_of(stem) in files and any(n.startswith("lora.") for n in tensor_names(self.folder, stem))
        }

    def tensors(self) -> dict[str, Tensor]:
        """Those of its reader; `head` has a row for each token of the constant head before the latents."""
        stem = reader_stem(self.name)
        return part_of(load_folder(self.folder, [stem])[stem], "reader")


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
        served = Served.of(checkpoint, receiver)
        served.need_slots()
        tensors = served.tensors()
        self.skeleton = Skeleton(model, dtype, device)
        reader = SlotReader.of(self.skeleton.anatomy, served.config, len(tensors["head"]), served.name)
        self.reader = reader.to(self.skeleton.device)
        load_part(self.reader, tensors, reader_stem(served.name))

    @torch.no_grad()
    def slots(self, latents: Array) -> list[tuple[Tensor, Tensor]]:
        """Rotated keys and values of one text, (head + M, kv_heads, head_dim) each, one pair a layer."""
        z = torch.as_tensor(latents, device=self.skeleton.device)[None]
        counts = torch.tensor([z.shape[1]], device=z.device)
        context = self.reader.context(self.skeleton, self.reader.generate(z, counts), counts)
        return [(layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)) for layer in context.cache.layers]
