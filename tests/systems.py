"""Small systems for tests: a tiny sender and tiny receivers behind a real configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latentwire.backbone.text_model import TextModel, TextTokenizer
from latentwire.config import Config, config_from_dict
from latentwire.core.errors import CheckpointError
from latentwire.core.names import LATENT, TEXT
from latentwire.data.example import Passage, Question
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.encoder.base import Encoder
from latentwire.encoder.byte import ByteEncoder
from latentwire.encoder.simple_st import SimpleSTEncoder
from latentwire.encoder.stq import STQEncoder
from latentwire.model.pretrained import save_checkpoint
from latentwire.model.receiver import Receiver
from latentwire.model.sender import Sender
from latentwire.model.system import LatentWire
from latentwire.training.stages.end_to_end import EndToEnd
from tests.tiny import bert_tokenizer, save_tiny, tiny_bert, tiny_lm, tiny_tokenizer

NAMES = ["Mira", "Tomas", "Edda", "Jon", "Sana", "Pavel"]
TOWNS = ["Talden", "Orlin", "Brannock", "Veyra", "Kestrel", "Mosk"]


def small_config(**sections: dict[str, Any]) -> Config:
    """Two receivers, windows of 4, everything in fp32."""
    kind = sections.get("encoder", {}).get("type", "backbone")
    base: dict[str, dict[str, Any]] = {
        "model": {"dtype": "float32", "receivers": {"a": "tiny-llama", "b": "tiny-gemma3"}},
        "encoder": {"model": "tiny-llama", "window": 4, "d_z": 16} | ({"layers": [0, 2]} if kind == "backbone" else {}),
        "deep_prefix": {"hidden": 8},
        "adapter": {"hidden": 8},
        "lora": {"r": 4, "alpha": 8},
        "queries": {"width": 16} | ({} if kind == "simple-st" else {"heads": 2}),
        "byte": {"layers": 1},
        "latent_refiner": {"width": 16, "heads": 2, "ff": 16},
        "optimizer": {"batch_size": 2, "warmup_steps": 2},
    }
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values
    on = base.get("features", {})
    idle = ["adapter" if on.get("use_deep_prefix", True) else "deep_prefix"]
    idle += [] if on.get("use_latent_refiner") else ["latent_refiner"]
    idle += {"backbone": ["queries", "byte"], "byte": []}.get(kind, ["byte"])
    return config_from_dict(
        {name: sections.get(name, {}) if name in idle else base[name] for name in base}, "small", {}
    )


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
        companion = tiny_lm("gemma3", seed) if config.encoder.companion else None
        return BackboneEncoder(tiny_lm("llama", seed), config, companion)
    if kind == "byte":
        return ByteEncoder(TextTokenizer("tiny-llama", tiny_tokenizer("llama")), config)
    model = TextModel("tiny-bert", tiny_bert(seed), bert_tokenizer())
    return STQEncoder(model, config) if kind == "stq" else SimpleSTEncoder(model, config)


def end_to_end(system: LatentWire, passages: int = 6) -> EndToEnd:
    """End-to-end training of a system on small passages, with LoRA where the configuration switches it on."""
    if system.config.features.use_lora:
        for receiver in system.receivers.values():
            receiver.add_adapter(LATENT)
    return EndToEnd(system, [system.prepare(p) for p in small_passages(passages)], system.config)


def latents_of(system: LatentWire, texts: list[str]) -> list[torch.Tensor]:
    """The latents of each text, (M_i, d_z), all texts encoded in one batch."""
    with torch.no_grad():
        z, counts = system.sender.latents_of([system.sender.prepare(text) for text in texts])
    return [row[:n] for row, n in zip(z, counts.tolist(), strict=True)]


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


def saved_run(folder: Path, **sections: dict[str, Any]) -> Path:
    """A run with a checkpoint of tiny models in folders, with LoRA for latents and text, none of it trained."""
    models = {name: str(save_tiny(name, folder / name)) for name in ("llama", "gemma3")}
    config = small_config(
        model={"dtype": "float32", "receivers": {"a": models["llama"], "b": models["gemma3"]}},
        encoder={"model": models["llama"]},
        features={"use_lora": True},
        **sections,
    )
    system = LatentWire.build(config)
    for receiver in system.receivers.values():
        for name in (LATENT, TEXT):
            for parameter in receiver.add_adapter(name).trainable_parameters():
                torch.nn.init.normal_(parameter, std=0.1)
    save_checkpoint(folder / "run" / "last", system)
    return folder / "run"


def assert_kept(system: LatentWire, other: LatentWire, part: str, texts: list[str], refusal: str) -> None:
    """A part of the sender goes through a state: another system then sends the same, and misses it where it is not."""
    assert other.sender.encode_batch(texts) != system.sender.encode_batch(texts)
    state = system.state_dict()
    other.load_state_dict(state)
    assert other.sender.encode_batch(texts) == system.sender.encode_batch(texts)
    lacking = {k: v for k, v in state["sender"].items() if not k.startswith(f"{part}.")}
    with pytest.raises(CheckpointError, match=refusal):
        other.load_state_dict(state | {"sender": lacking})
