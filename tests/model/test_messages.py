"""Both ends of a wire: a sender that encodes texts, and receivers that answer from the bytes alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentwire import Receiver, Sender, Wire
from latentwire.checkpoint.index import sender_fingerprint
from latentwire.core.errors import CheckpointError, ConfigError, DataError, ModelError, WireError
from latentwire.core.names import LATENT, TEXT
from latentwire.model.consensus import consensus
from latentwire.model.pretrained import load_checkpoint, save_checkpoint
from latentwire.model.system import LatentWire
from tests.systems import saved_run, small_config, small_passages, small_system

TEXTS = [p.context for p in small_passages(3)]
QUESTION = "Where does Mira live?"


@pytest.fixture(scope="module")
def system() -> LatentWire:
    return small_system(small_config())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("checkpoint"))


# ---- sender -------------------------------------------------------------------------------------------------------


def test_a_message_holds_the_latents_of_its_text(system: LatentWire) -> None:
    sender = system.sender
    with torch.no_grad():
        z, _ = sender.latents_of([sender.prepare(TEXTS[0])])
    wire = sender.encode(TEXTS[0], "fp32")
    assert np.array_equal(wire.latents, z[0].numpy()) and wire.text is None and not wire.frame.more
    assert sender.encode(TEXTS[0], with_text=True).text == TEXTS[0]
    assert str(sender.encode(TEXTS[0]).codec) == "fp16"
    assert str(sender.encode(TEXTS[0], "int4:group=8").codec) == "int4:group=8,scale_bits=8"


def test_a_batch_gives_what_single_texts_give(system: LatentWire) -> None:
    texts = [" ".join(TEXTS[: n % 3 + 1]) for n in range(19)]
    together = system.sender.encode_batch(texts, "fp32", with_text=True)
    assert [wire.text for wire in together] == texts
    for text, wire in zip(texts, together, strict=True):
        np.testing.assert_allclose(wire.latents, system.sender.encode(text, "fp32").latents, atol=1e-4)


def test_a_longer_text_is_several_messages(system: LatentWire) -> None:
    text = "\n".join(TEXTS) + "\n"
    parts = list(system.sender.encode_stream([text[:50], text[50:]], "fp32", with_text=True, chunk=60))
    assert len(parts) == 3 and [wire.text for wire in parts] == [f"{line}\n" for line in TEXTS]
    assert [wire.frame.more for wire in parts] == [True, True, False]
    np.testing.assert_allclose(parts[1].latents, system.sender.encode(f"{TEXTS[1]}\n", "fp32").latents, atol=1e-5)
    (alone,) = system.sender.encode_stream([TEXTS[0]])
    assert alone == system.sender.encode(TEXTS[0])
    assert list(system.sender.encode_stream([])) == []


def test_long_texts_are_encoded_together_as_they_are_alone(system: LatentWire) -> None:
    texts = ["\n".join(TEXTS), TEXTS[1], " ".join(TEXTS * 2)]
    system.sender.chunk, before = 60, system.sender.chunk
    try:
        together = system.sender.encode_long(texts, "fp32", with_text=True)
        assert [len(wires) for wires in together][1] == 1 and min(len(together[0]), len(together[2])) > 2
        for text, wires in zip(texts, together, strict=True):
            alone = list(system.sender.encode_stream([text], "fp32", with_text=True))
            assert [(w.text, w.frame.more) for w in wires] == [(w.text, w.frame.more) for w in alone]
            for one, other in zip(wires, alone, strict=True):
                np.testing.assert_allclose(one.latents, other.latents, atol=1e-4)
    finally:
        system.sender.chunk = before


def test_texts_that_cannot_be_sent_are_named(system: LatentWire) -> None:
    with pytest.raises(ModelError, match="longer than the sender's window of 512"):
        system.sender.encode("word " * 900)
    with pytest.raises(ModelError, match="holds no token, so there is nothing to send"):
        system.sender.encode("")
    with pytest.raises(WireError, match="codec 'int5' is unknown"):
        system.sender.encode(TEXTS[0], "int5")


def test_half_a_character_is_neither_sent_nor_asked(system: LatentWire) -> None:
    sender, receiver = system.sender, system.receivers["a"]
    half = r"the (text|question) is not valid Unicode: surrogates not allowed at character 2"
    for send in (sender.encode, sender.prepare, lambda text: list(sender.encode_stream([text]))):
        with pytest.raises(DataError, match=half):
            send("a \ud800")
    with pytest.raises(DataError, match=half):
        receiver.answer(sender.encode(TEXTS[0]), "a \ud800")


def test_a_wrong_codec_in_the_configuration_is_known_before_models_are_loaded() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.codec: codec 'int5' is unknown"):
        LatentWire.build(small_config(evaluation={"codec": "int5"}, encoder={"model": "/no/such/folder"}))


# ---- receiver -----------------------------------------------------------------------------------------------------


def test_an_answer_is_that_of_the_latents_in_the_bytes(system: LatentWire) -> None:
    wire = Wire.from_bytes(system.sender.encode(TEXTS[0], "int8").to_bytes())
    for receiver in system.receivers.values():
        reply = receiver.answer(wire, QUESTION, 6)
        with torch.no_grad():
            context = receiver.read_latents(torch.from_numpy(wire.latents)[None], torch.tensor([len(wire.latents)]))
        assert reply.text == receiver.generate(context, [receiver.prompt.tail(QUESTION)], 6)[0]
        assert (reply.source, reply.note) == ("latents", None)


def test_messages_are_answered_together_as_they_are_alone(system: LatentWire) -> None:
    wires = system.sender.encode_batch(TEXTS)
    wires.append(Wire.of(text=TEXTS[0]))
    questions = [[QUESTION, "How many lamps?"], [], ["Who?"], [QUESTION]]
    receiver = system.receivers["b"]
    together = receiver.answer_batch(wires, questions, 6)
    assert [len(replies) for replies in together] == [2, 0, 1, 1]
    assert [reply.source for replies in together for reply in replies] == ["latents", "latents", "latents", "text"]
    for wire, own, replies in zip(wires, questions, together, strict=True):
        assert replies == [receiver.answer(wire, question, 6) for question in own]


@pytest.mark.parametrize("questions", [[QUESTION], [[QUESTION]] * 2, [], QUESTION, "?"])
def test_every_message_has_a_list_of_questions(system: LatentWire, questions: Any) -> None:
    with pytest.raises(DataError, match=r"questions: one list of questions is needed for each of the 1 messages"):
        system.receivers["a"].answer_batch([system.sender.encode(TEXTS[0])], questions)


def test_an_answer_may_be_the_consensus_of_several(system: LatentWire) -> None:
    receiver, wire = system.receivers["b"], system.sender.encode(TEXTS[0])
    questions = [QUESTION, "How many lamps?", "Who?", "When was it built?", "What colour is the door?"]
    with torch.no_grad(), receiver.using(LATENT):
        context = receiver.read_message(wire).repeat([len(questions)])
        made = receiver.candidates(context, [receiver.prompt.tail(q) for q in questions], 6, 5)
    replies = receiver.answer_batch([wire], [questions], 6, candidates=5)[0]
    assert [reply.text for reply in replies] == [consensus(own) for own in made]
    assert replies != receiver.answer_batch([wire], [questions], 6)[0]
    assert receiver.answer(wire, QUESTION, 6, candidates=5) == replies[0]


def test_answers_are_seen_while_they_grow_and_may_be_ended(system: LatentWire) -> None:
    receiver, wires = system.receivers["b"], [system.sender.encode(TEXTS[0]), Wire.of(text=TEXTS[1])]
    seen: dict[tuple[int, int], list[str]] = {}

    def watch(number: int, question: int, answer: str) -> bool:
        seen.setdefault((number, question), []).append(answer)
        return number == 1 and len(seen[1, question]) == 2

    questions = [[QUESTION, "How many lamps?"], ["Who?"]]
    replies = receiver.answer_batch(wires, questions, 8, watch)
    assert replies[0] == receiver.answer_batch(wires, questions, 8)[0]
    for question, reply in enumerate(replies[0]):
        grown = seen[0, question]
        assert grown[-1] == reply.text.rstrip("\ufffd") and len(grown) > 2 and all(map(reply.text.startswith, grown))
    assert replies[1] == [receiver.answer(wires[1], "Who?", 2)] and len(seen[1, 0]) == 2


def test_the_parts_of_a_text_are_read_as_one(system: LatentWire) -> None:
    parts = list(system.sender.encode_stream(["\n".join(TEXTS)], chunk=60))
    receiver = system.receivers["a"]
    whole = Wire.of(np.concatenate([wire.latents for wire in parts]), "fp32")
    assert len(parts) > 1
    assert receiver.answer(parts, QUESTION, 8) == receiver.answer(whole, QUESTION, 8)


def test_the_text_is_read_where_the_latents_do_not_fit(system: LatentWire) -> None:
    receiver = system.receivers["a"]
    stranger = Wire.of(np.ones((2, 5), np.float32), text=TEXTS[0], sender=b"stranger")
    for receiver.sender, note in ((b"expected", "comes from sender"), (None, "width 5; the reader expects 16")):
        reply = receiver.answer(stranger, QUESTION, 6)
        assert reply.source == "text" and note in (reply.note or "")
        ids = receiver.prompt.head + receiver.lm.tokenize_with_offsets(TEXTS[0])[0]
        plain = receiver.generate(receiver.read_text([ids]), [receiver.prompt.tail(QUESTION)], 6)
        assert [reply.text] == plain
        two = [replace(stranger, frame=replace(stranger.frame, more=True)), stranger]
        assert receiver.answer(two, QUESTION, 6).source == "text"


def test_latents_that_do_not_fit_are_refused_where_there_is_no_text(system: LatentWire) -> None:
    receiver = system.receivers["a"]
    with pytest.raises(WireError, match=r"receiver 'a': .* width 8; the reader expects 16, and carries no text"):
        receiver.answer(Wire.of(np.ones((2, 8))), QUESTION)
    with pytest.raises(WireError, match="no message"):
        receiver.answer([], QUESTION)
    with pytest.raises(ModelError, match="window of 512"):
        receiver.answer([Wire.of(np.ones((300, 16)))] * 2, QUESTION)
    with pytest.raises(ModelError, match="window of 512"):
        receiver.answer(Wire.of(text="word " * 900), QUESTION)


@pytest.mark.parametrize("message", ["latents", "text"])
def test_what_is_checked_beforehand_is_what_an_answer_takes(message: str) -> None:
    system = small_system(small_config(), ("llama",))
    receiver, questions = system.receivers["a"], ["Who?", QUESTION]
    wire = system.sender.encode(TEXTS[0]) if message == "latents" else Wire.of(text=TEXTS[0])
    read = len(wire.latents) if message == "latents" else len(receiver.lm.tokenize_with_offsets(TEXTS[0])[0])
    needed = len(receiver.prompt.head) + read + len(receiver.prompt.tail(QUESTION))
    receiver.lm.anatomy = replace(receiver.lm.anatomy, max_positions=needed)
    assert receiver.check([wire], questions) == (0 if message == "latents" else read)
    receiver.lm.anatomy = replace(receiver.lm.anatomy, max_positions=needed - 1)
    with pytest.raises(ModelError, match=f"{needed} tokens of passage and question"):
        receiver.check([wire], questions)


# ---- from a checkpoint --------------------------------------------------------------------------------------------


def test_each_end_loads_only_its_own_part(checkpoint: Path) -> None:
    system = load_checkpoint(str(checkpoint))  # a run, by its name: its last one
    sender = Sender.from_pretrained(checkpoint)
    wire = sender.encode(TEXTS[0])
    assert wire == system.sender.encode(TEXTS[0]) and wire.frame.sender == sender_fingerprint(checkpoint / "last")
    (checkpoint / "last" / "sender.safetensors").rename(checkpoint / "aside")
    try:
        for name in ("a", "b"):
            receiver = Receiver.from_pretrained(checkpoint, name, {"encoder.model": "/no/such/model"})
            assert set(receiver.adapters) == {LATENT, TEXT}
            for message in (wire, Wire.of(text=TEXTS[0])):
                assert receiver.answer(message, QUESTION, 8) == system.receivers[name].answer(message, QUESTION, 8)
            own, whole = receiver.reader.state_dict(), system.receivers[name].reader.state_dict()
            assert all(torch.equal(own[key], whole[key]) for key in whole)
    finally:
        (checkpoint / "aside").rename(checkpoint / "last" / "sender.safetensors")


def test_the_text_is_read_with_the_lora_that_was_tuned_on_text(checkpoint: Path) -> None:
    receiver = Receiver.from_pretrained(checkpoint, "a")
    ids = receiver.prompt.head + receiver.lm.tokenize_with_offsets(TEXTS[0])[0]
    tails = [receiver.prompt.tail(QUESTION)]
    with receiver.using(TEXT):
        tuned = receiver.generate(receiver.read_text([ids]), tails, 12)[0]
    with receiver.using(None):
        bare = receiver.generate(receiver.read_text([ids]), tails, 12)[0]
    assert receiver.answer(Wire.of(text=TEXTS[0]), QUESTION, 12).text == tuned != bare


def test_a_sender_is_known_by_its_weights_and_configuration(checkpoint: Path, tmp_path: Path) -> None:
    known = sender_fingerprint(checkpoint / "last")
    system = load_checkpoint(checkpoint / "last")
    save_checkpoint(tmp_path / "same", system)
    assert sender_fingerprint(tmp_path / "same") == known
    with torch.no_grad():
        system.sender.encoder.weight[0, 0] += 1
    save_checkpoint(tmp_path / "weights", system)
    assert sender_fingerprint(tmp_path / "weights") != known
    other = Sender.from_pretrained(tmp_path / "weights").encode(TEXTS[0])
    with pytest.raises(WireError, match=f"comes from sender .*; the reader expects {known.hex()}"):
        Receiver.from_pretrained(checkpoint, "a").answer(other, QUESTION)


def test_a_receiver_that_is_not_there_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no receiver 'gemma' .it has: a, b"):
        Receiver.from_pretrained(checkpoint, "gemma")
    for load in (lambda: Sender.from_pretrained(tmp_path), lambda: Receiver.from_pretrained(tmp_path, "a")):
        with pytest.raises(CheckpointError, match="no checkpoint there"):
            load()


def test_texts_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight long texts in one batch would take eight times the memory of one, which is the square of its length."""
    receiver = small_system(small_config(), ("llama",)).receivers["a"]
    wires, asked = [Wire.of(text=p.context) for p in small_passages(3)], [["Who?", "Where?"]] * 3
    read, sizes = receiver.read_text, []
    monkeypatch.setattr(receiver, "read_text", lambda rows: (sizes.append(len(rows)), read(rows))[1])
    together = receiver.answer_batch(wires, asked, 4)
    assert sizes == [1, 1, 1]
    assert together == [receiver.answer_batch([wire], [["Who?", "Where?"]], 4)[0] for wire in wires]
