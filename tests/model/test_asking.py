"""A conversation on one text: what is read once, what is streamed, and that answers are the usual ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latentwire.backbone.context import Context
from latentwire.core.errors import DataError, ModelError
from latentwire.model.asking import Conversation
from latentwire.model.receiver import Receiver
from latentwire.model.system import LatentWire
from latentwire.wire.message import Wire
from tests.systems import small_config, small_system

TEXT = "Mira lives in Talden near the river and sells 2 red lamps on the hill. "
QUESTIONS = ["Where does Mira live?", "How many lamps are there on the hill?", "Who?"]


@pytest.fixture(scope="module")
def system() -> LatentWire:
    made = small_system(small_config(features={"use_lora": True}))
    for receiver in made.receivers.values():
        for name in ("latent", "text"):
            for weight in receiver.add_adapter(name).trainable_parameters():
                torch.nn.init.normal_(weight, std=0.3)
    return made


def test_answers_are_those_of_a_receiver_that_is_sent_the_message(system: LatentWire) -> None:
    talk = Conversation(system, TEXT)
    wire, plain = system.sender.encode(TEXT), Wire.of(text=TEXT)
    assert talk.bytes == {"latents": len(wire.to_bytes()), "text": len(TEXT)}
    assert wire.latents is not None and talk.latents == len(wire.latents)
    seen = set()
    for name, receiver in system.receivers.items():
        for question in QUESTIONS:
            for message, source in ((wire, "latents"), (plain, "text")):
                told: list[str] = []
                got = talk.answer(name, question, source, 12, told.append)  # type: ignore[arg-type]
                assert got.answer == receiver.answer(message, question, 12).text
                assert told[-1] == got.answer.rstrip("\ufffd") and not any(text.endswith("\ufffd") for text in told)
                assert 1 <= len(told) <= 12 and (got.receiver, got.source) == (name, source)
                assert 0 < got.first_token_s <= got.answer_s
                seen |= set(told)
    assert len(seen) > 24  # answers grew, and differ


def test_each_context_is_read_once_and_counts_all_that_is_given(
    system: LatentWire, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, made = [], Receiver.read_message

    def counted(self: Receiver, message: Any, source: Any, tail: int) -> Context:
        read.append((self.name, source))
        return made(self, message, source, tail)

    monkeypatch.setattr(Receiver, "read_message", counted)
    talk = Conversation(system, TEXT)
    first = talk.answer("a", QUESTIONS[0], max_new_tokens=3)
    again = talk.answer("a", QUESTIONS[1], max_new_tokens=3)
    talk.answer("b", QUESTIONS[0], max_new_tokens=3)
    talk.answer("a", QUESTIONS[0], "text", max_new_tokens=3)
    assert read == [("a", "latents"), ("b", "latents"), ("a", "text")] and first.read_s == again.read_s
    prompt = system.receivers["a"].prompt
    assert first.positions == len(prompt.head) + talk.latents + len(prompt.tail(QUESTIONS[0]))
    assert talk.answer("a", QUESTIONS[0], max_new_tokens=3).answer == first.answer


def test_texts_that_are_empty_or_too_long(system: LatentWire) -> None:
    with pytest.raises(DataError, match="no text"):
        Conversation(system, "")
    talk = Conversation(system, TEXT * 20)
    assert len(talk.messages["latents"]) > 1
    assert talk.answer("a", QUESTIONS[0], max_new_tokens=2).positions < 512
    with pytest.raises(ModelError, match="longer than the model's window"):
        talk.answer("a", QUESTIONS[0], "text", 2)
