"""Small systems for tests: a tiny sender and tiny receivers behind a real configuration."""

from __future__ import annotations

from typing import Any

import torch

from latentwire.backbone.text_model import TextModel, TextTokenizer
from latentwire.config import Config
from latentwire.data.example import Passage, Question
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.encoder.base import Encoder
from latentwire.encoder.byte import ByteEncoder
from latentwire.encoder.simple_st import SimpleSTEncoder
from latentwire.encoder.stq import STQEncoder
from latentwire.model.receiver import Receiver
from latentwire.model.sender import Sender
from latentwire.model.system import LatentWire
from tests.tiny import bert_tokenizer, tiny_bert, tiny_lm, tiny_tokenizer

NAMES = ["Mira", "Tomas", "Edda", "Jon", "Sana", "Pavel"]
TOWNS = ["Talden", "Orlin", "Brannock", "Veyra", "Kestrel", "Mosk"]


def small_config(**sections: dict[str, Any]) -> Config:
    """Two receivers, windows of 4, everything in fp32."""
    base: dict[str, dict[str, Any]] = {
        "model": {"dtype": "float32", "receivers": {"a": "tiny-llama", "b": "tiny-gemma3"}},
        "encoder": {"model": "tiny-llama", "layers": [0, 2], "window": 4, "d_z": 16},
        "deep_prefix": {"hidden": 8},
        "adapter": {"hidden": 8},
        "lora": {"r": 4, "alpha": 8},
        "queries": {"width": 16, "heads": 2},
        "byte": {"layers": 1},
        "latent_refiner": {"width": 16, "heads": 2, "ff": 16},
        "optimizer": {"batch_size": 2, "warmup_steps": 2},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values
    return Config.model_validate(base)


def small_system(config: Config, families: tuple[str, ...] = ("llama", "gemma3"), seed: int = 0) -> LatentWire:
    """A system of tiny models, one receiver for each family, named a, b, ..."""
    torch.manual_seed(seed)
    sender = Sender(small_encoder(config, seed), config)
    receivers = {
        name: Receiver(name, tiny_lm(family, seed), config) for name, family in zip("abcd", families, strict=False)
    }
    return LatentWire(config, sender, receivers)


def small_encoder(config: Config, seed: int = 0) -> Encoder:
    """The encoder that a configuration asks for, on a tiny model."""
    kind = config.encoder.type
    if kind == "backbone":
        return BackboneEncoder(tiny_lm("llama", seed), config)
    if kind == "byte":
        return ByteEncoder(TextTokenizer("tiny-llama", tiny_tokenizer("llama")), config)
    model = TextModel("tiny-bert", tiny_bert(seed), bert_tokenizer())
    return STQEncoder(model, config) if kind == "stq" else SimpleSTEncoder(model, config)


def small_passages(count: int = 6) -> list[Passage]:
    """Passages with two questions each."""
    return [
        Passage(
            f"p{i}",
            f"{NAMES[i % 6]} lives in {TOWNS[i % 6]} near the river and sells {i + 2} red lamps on the hill.",
            (
                Question(f"{i}-0", f"Where does {NAMES[i % 6]} live?", (TOWNS[i % 6],)),
                Question(f"{i}-1", "How many lamps?", (str(i + 2),)),
            ),
        )
        for i in range(count)
    ]
