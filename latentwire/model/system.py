"""One sender and its receivers, built from a configuration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentwire.backbone.anatomy import describe
from latentwire.backbone.devices import prepare_device
from latentwire.backbone.lm import LanguageModel
from latentwire.backbone.load import load_config
from latentwire.backbone.turns import Turns
from latentwire.checkpoint.parts import (
    adapter_stem,
    load_part,
    merge,
    part_of,
    reader_stem,
    register_codebooks,
)
from latentwire.config import Config
from latentwire.core.errors import CheckpointError, named
from latentwire.core.names import ADAPTERS, CODEBOOKS, READERS, SENDER, file_of
from latentwire.data.example import Passage
from latentwire.encoder.registry import build_encoder
from latentwire.encoder.text import SenderText
from latentwire.model.encoding import Prepared, encode_for_receiver
from latentwire.model.receiver import Receiver
from latentwire.model.sender import Sender
from latentwire.wire.default import default_codec


class LatentWire:
    """The whole: sender, and receivers by name."""

    def __init__(self, config: Config, sender: Sender, receivers: dict[str, Receiver]):
        self.config = config
        self.sender = sender
        self.receivers = receivers

    @classmethod
    def build(cls, config: Config, only: Sequence[str] | None = None) -> LatentWire:
        """Load every model that the configuration names, or the sender and only some of the receivers.

        Readers and encoder start at random.
        """
        default_codec(config)  # what is wrong with it should be known before anything is loaded
        device = prepare_device(config)
        turns = Turns() if config.system.sequential_models else None
        models = config.model.chosen
        own = [config.encoder.model, config.encoder.companion] if config.encoder.type == "backbone" else []
        for model in dict.fromkeys(filter(None, [*own, *(models[name] for name in only or models)])):
            describe(load_config(model), model)  # what is not supported is refused before weights are fetched
        sender = Sender(build_encoder(config, device), config)
        receivers = {
            name: Receiver(name, load_lm(models[name], config, device, turns), config) for name in only or models
        }
        return cls(config, sender, receivers)

    def prepare(self, passage: Passage, sent: SenderText | None = None) -> Prepared:
        """A passage as token ids, for the sender (`sent` where it has them already) and for each receiver."""
        sent = sent or self.sender.prepare(passage.context)
        return sent, {name: encode_for_receiver(r.lm, r.prompt, passage, sent) for name, r in self.receivers.items()}

    def prepare_to_ask(self, passage: Passage) -> Prepared:
        """`prepare`; ModelError, which names the passage, also where the text with one of its questions, in the longest
        form in which it is read (`evaluation.modes`), is too long for a receiver."""
        with named(f"evaluation: passage {passage.id!r}"):
            sent, texts = self.prepare(passage)
            anchored = "embedding_anchor" in self.config.evaluation.modes
            for name, receiver in self.receivers.items():
                receiver.check_length(texts[name].positions + (len(receiver.passage_anchor) if anchored else 0))
        return sent, texts

    def state_dict(self, *, training: bool = False) -> dict[str, dict[str, Tensor]]:
        """All that training makes, as {file stem: tensors}; the language models themselves are not in it.

        What is needed to go on training but not to read a message is in it only with `training`.
        """
        state = {SENDER: merge(**{name: part.state_dict() for name, part in self.sender.parts.items()})}
        for name, receiver in self.receivers.items():
            state[reader_stem(name)] = merge(reader=receiver.reader.state_dict())
            for feature_name, feature in receiver.features.items():
                if training or not feature.train_only:
                    state[reader_stem(name)] |= merge(**{feature_name: feature.state_dict()})
            for adapter, lora in receiver.adapters.items():
                state.setdefault(adapter_stem(name, adapter), {}).update(merge(lora=lora.state_dict()))
        for kind, book in self.sender.codebooks.items():
            state[f"{CODEBOOKS}{kind}"] = {key: torch.from_numpy(array) for key, array in book.arrays.items()}
        return state

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take up a state; every receiver of this system must be in it. Adapters found in it are attached."""
        missing = [n for n in self.receivers if reader_stem(n) not in state]
        if missing:
            known = ", ".join(s.removeprefix(READERS) for s in state if s.startswith(READERS))
            raise CheckpointError(
                f"model.receivers: the checkpoint was not trained for {missing[0]!r} (it has: {known})"
            )
        load_sender_state(self.sender, state)
        for receiver in self.receivers.values():
            load_receiver_state(receiver, state)


def load_sender_state(sender: Sender, state: dict[str, dict[str, Tensor]], *, start: bool = False) -> None:
    """Take up a sender's part of a state; with `start`, parts that it knows nothing of stay as they begin."""
    if SENDER not in state:
        raise CheckpointError(f"the checkpoint has no file {file_of(SENDER)}")
    for name, part in sender.parts.items():
        own = part_of(state[SENDER], name)
        if own or not start:
            load_part(part, own, f"sender: {name}")
    sender.codebooks |= register_codebooks(state)


def load_receiver_state(receiver: Receiver, state: dict[str, dict[str, Tensor]], *, start: bool = False) -> None:
    """Take up a receiver's part of a state; adapters found in it are attached, unless LoRA is switched off.

    With `start`, a reader and features that the state knows nothing of stay as they begin.
    """
    name = receiver.name
    reader = part_of(state[reader_stem(name)], "reader")
    if reader or not start:
        load_part(receiver.reader, reader, reader_stem(name))
    for feature_name, feature in receiver.features.items():
        own = part_of(state[reader_stem(name)], feature_name)
        if own or not (start or feature.train_only):
            load_part(feature, own, f"{reader_stem(name)}: {feature_name}")
    for adapter in ADAPTERS:
        lora = part_of(state.get(adapter_stem(name, adapter), {}), "lora")
        if lora and receiver.config.features.use_lora:
            receiver.add_adapter(adapter).load_state_dict(lora)


def load_lm(model: str, config: Config, device: str, turns: Turns | None = None) -> LanguageModel:
    """Load one receiver's language model as the configuration says."""
    return LanguageModel.load(
        model,
        dtype=config.model.dtype,
        attn_implementation=config.model.attn_implementation,
        device=device,
        load_4bit=config.model.load_4bit,
        device_map=config.system.device_map,
        turns=turns,
    )
