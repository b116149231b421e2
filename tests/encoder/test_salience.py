"""Tokens that are chosen from the whole text, by how likely they are to be asked about (encoder.keep_by, keep_from)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentwire.config.load import config_from_dict
from latentwire.core.errors import ConfigError, TrainingError
from latentwire.data.asked import answer_spans, common_words, question_spans
from latentwire.data.example import Passage, Question
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.encoder.salience import Salience
from latentwire.encoder.text import SenderText
from latentwire.encoder.windows import best_of_text, best_of_windows
from latentwire.model.pretrained import load_checkpoint, save_checkpoint
from latentwire.model.system import LatentWire
from latentwire.training.material import Material
from latentwire.training.origin import Origin
from latentwire.training.stages.salience import auc, fit_salience, marks
from tests.systems import assert_kept, saved_run, small_config, small_passages, small_system

TEXTS = [p.context for p in small_passages(3)]
BY_SALIENCE = {"window": 4, "keep": 2, "keep_by": "salience", "keep_from": "text"}


def system_with(**encoder: object) -> LatentWire:
    return small_system(small_config(encoder=BY_SALIENCE | encoder))


def encoder_of(system: LatentWire) -> BackboneEncoder:
    assert isinstance(system.sender.encoder, BackboneEncoder)
    return system.sender.encoder


def asked(system: LatentWire, passages: list[Passage]) -> list[tuple[SenderText, Passage]]:
    return [(system.sender.prepare(passage.context), passage) for passage in passages]


def fitted(system: LatentWire, passages: int = 40) -> dict[str, float]:
    return fit_salience(encoder_of(system), asked(system, small_passages(passages)), held_out=6, ridge=1e-3)


def test_the_best_of_a_text_share_windows_in_their_order() -> None:
    scores, nats = [9.0, 1.0, 8.0, 3.0, 4.0, 2.0, 7.0, 6.0], [5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 9.5]
    assert best_of_text(range(8), scores, nats, 2, 2) == [[2, 6], [0, 7]]  # windows (0, 2) and (6, 7), hardest first
    assert best_of_text(range(1, 8), scores, nats, 2, 1) == [[6], [2]]  # the first token is a special one
    assert best_of_text(range(3), scores, nats, 2, 2) == [[0, 2], [0, 1]]  # too few tokens: a repeated one
    assert best_of_text(range(1), scores, nats, 2, 3) == [[0, 0, 0], [0, 0, 0]]


@torch.no_grad()
def test_what_scores_highest_comes_first_where_that_is_asked_for() -> None:
    system = system_with(keep_order="score")
    fitted(system)
    encoder = encoder_of(system)
    for text in TEXTS:
        sent = system.sender.prepare(text)
        scores = encoder.salience(encoder.salience_inputs([sent])[0])
        assert sent.chosen is not None
        for first, second in zip(*sent.chosen, strict=True):
            assert scores[first - sent.before] >= scores[second - sent.before]


def test_the_best_of_a_window_stand_in_the_order_of_their_surprisal() -> None:
    scores, nats = [9.0, 1.0, 8.0, 3.0], [5.0, 6.0, 7.0, 8.0]
    assert best_of_windows([[0], [1], [2], [3]], scores, nats, 2) == [[2], [0]]


@pytest.mark.parametrize("keep_by", ["surprisal", "salience"])
@torch.no_grad()
def test_what_is_read_of_the_whole_text(keep_by: str) -> None:
    """The best, whatever their windows; a receiver of the sender's kind reads the very same tokens."""
    system = system_with(keep_by=keep_by)
    fitted(system) if keep_by == "salience" else None
    encoder = encoder_of(system)
    for passage in small_passages(3):
        sent, texts = system.prepare(passage)
        assert sent.chosen is not None and len(sent.chosen[0]) == sent.latents == -(-sent.tokens // 4)
        ids = torch.tensor([sent.ids])
        scores = surprisal = encoder.lm.surprisal(encoder.lm.final_states(ids, torch.ones_like(ids)), ids)[0]
        if encoder.salience is not None:
            scores = surprisal.new_zeros(len(sent.ids))
            scores[list(sent.own_tokens)] = encoder.salience(encoder.salience_inputs([sent])[0])
        read = {token for row in sent.chosen for token in row}
        left = set(sent.own_tokens) - read
        assert len(read) == 2 * sent.latents and min(scores[list(read)]) >= max(scores[list(left)])
        for first, second in zip(*sent.chosen, strict=True):
            assert surprisal[first] >= surprisal[second]
        head, frame = texts["a"].head_len, len(sent.ids) - sent.tokens
        assert texts["a"].phase_tokens == [[i - frame + head for i in row] for row in sent.chosen]
        assert "".join(sent.text[a:b] for a, b in sent.spans) == sent.text
        for (first, end), window in zip(sent.spans, sent.read_spans or [], strict=True):
            assert all(first <= a and b <= end for a, b in window)


@torch.no_grad()
def test_a_choice_does_not_depend_on_the_company() -> None:
    system = system_with()
    fitted(system)
    ahead, alone = ([system.sender.prepare(text) for text in TEXTS] for _ in range(2))
    system.sender.encoder.choose_ahead(ahead)
    assert [text.chosen for text in ahead] == [text.chosen for text in alone]
    features = system.sender.features([system.sender.prepare(TEXTS[0])])[0]
    torch.testing.assert_close(system.sender.features(ahead)[0], features, atol=1e-4, rtol=1e-4)


def test_a_score_is_made_of_what_is_asked_and_what_is_hard_to_predict() -> None:
    salience = Salience(2)
    salience.weight[:2].copy_(torch.eye(2))
    inputs = Salience.inputs(
        torch.tensor([[0.9, 0.0], [0.0, 0.9], [0.3, 0.0], [0.3, 0.0], [7.0, -1.0]]),
        torch.tensor([1.0, 1.0, 1.0, 5.0, float("inf")]),
    )
    answer, question, hardly, surprising, certain = salience(inputs).tolist()
    assert answer > question > surprising > hardly and answer < certain < float("inf")
    assert salience.probabilities(inputs)[-1].tolist() == pytest.approx([1.0, 0.01])


def test_where_answers_and_words_of_questions_stand() -> None:
    passage = Passage(
        "p", "Ann met Bob. Bob, not Bobby, paid Ann 5 euros.", (Question("1", "Who PAID Ann?", ("Bob", "nobody")),)
    )
    text = passage.context
    assert [text[a:b] for a, b in answer_spans(passage)] == ["Bob", "Bob"]
    assert [text[a:b] for a, b in question_spans(passage, {"ann"})] == ["paid"]
    verdict = Passage(
        "p", "There is no yes in it.", (Question("1", "Is there?", ("no",)), Question("2", "Yes?", ("yes",)))
    )
    assert not answer_spans(verdict)
    others = [Passage(str(n), f"Ann slept in room{n}", ()) for n in range(4)]
    assert common_words([passage, *others]) == {"ann", "slept", "in"}
    assert common_words(others) == {"ann", "slept", "in"}  # a quarter alone is not many


def test_marks_are_those_of_a_texts_own_tokens() -> None:
    system = system_with()
    passage = small_passages(1)[0]
    sent = system.sender.prepare(passage.context)
    found = marks(sent, passage, {"the", "lives"})
    for kind, words in enumerate(({"Talden", "2"}, {"Mira", "lamps"})):
        spans = [sent.offsets[token] for token, of in zip(sent.own_tokens, found.tolist(), strict=True) if of[kind]]
        marked = "".join(sent.text[a:b].strip() for a, b in spans)
        assert marked == "".join(word for word in sent.text.split() if word in words)


def test_the_area_under_the_curve() -> None:
    scores = torch.tensor([0.1, 0.4, 0.4, 0.9])
    assert auc(scores, torch.tensor([0.0, 0.0, 1.0, 1.0])) == 0.875
    assert auc(scores, torch.tensor([1.0, 0.0, 0.0, 0.0])) == 0.0
    assert auc(scores, torch.zeros(4)) == 0.5


def test_questions_that_were_made_from_the_text_do_not_count() -> None:
    system = system_with()
    made = Passage("cloze-7", "Edda sells lamps in Veyra.", (Question("c", "____ sells lamps", ("Edda",)),))
    once_more = replace(small_passages(1)[0], id="renamed-p0")
    material = Material(system, system.config, [*small_passages(3), made, once_more], [])
    assert len(material.prepared) == 5 and [passage.id for _, passage in material.for_salience()] == ["p0", "p1", "p2"]
    without = r"\(without those of data\.cloze and data\.renamed\)"
    with pytest.raises(TrainingError, match=rf"encoder\.keep_by: .* of 3 {without}"):
        material.check_salience()


def test_it_learns_from_so_many_passages_behind_those_set_aside() -> None:
    few = small_config(encoder=BY_SALIENCE, curriculum={"closed_form": {"salience_passages": 2, "held_out": 1}})
    system = small_system(few)
    material = Material(system, few, small_passages(6), [])
    assert [passage.id for _, passage in material.for_salience()] == ["p0", "p1", "p2"]


def test_each_window_may_give_its_own() -> None:
    system = system_with(keep_from="window")
    fitted(system)
    for text in TEXTS:
        sent = system.sender.prepare(text)
        assert sent.chosen is not None
        for window in zip(*sent.phase_tokens, *sent.chosen, strict=True):
            assert set(window[4:]) <= set(window[:4])


def test_one_salience_is_told_from_another() -> None:
    one, other = system_with(), system_with()
    fitted(one)
    fitted(other, 12)
    digests = {encoder_of(system).salience.digest for system in (one, other, one)}  # type: ignore[union-attr]
    assert len(digests) == 2


def test_it_learns_what_is_asked() -> None:
    system = system_with()
    before = sum(answers_read(system, passage) for passage in small_passages(6))
    scores = fitted(system)
    assert scores["answers"] > 0.95 and scores["questions"] > 0.95
    after = sum(answers_read(system, passage) for passage in small_passages(6))
    assert after > 0.8 * 6 and after > before


def answers_read(system: LatentWire, passage: Passage) -> float:
    """The share of the tokens of a passage's answers that is read."""
    sent = system.sender.prepare(passage.context)
    answers = marks(sent, passage, set())[:, 0].nonzero()[:, 0] + sent.own_tokens.start
    assert sent.chosen is not None
    return sum(int(token) in {t for row in sent.chosen for t in row} for token in answers) / len(answers)


def test_without_questions_there_is_nothing_to_learn() -> None:
    system = system_with()
    bare = [Passage(p.id, p.context, ()) for p in small_passages(8)]
    with pytest.raises(TrainingError, match=r"encoder\.keep_by: salience is learned from answers"):
        fit_salience(encoder_of(system), asked(system, bare), held_out=2, ridge=0.1)


def test_a_checkpoint_keeps_it() -> None:
    one, other = system_with(), system_with()
    fitted(one)
    fitted(other, 12)
    with torch.no_grad():
        encoder_of(other).salience.weight.mul_(-1)  # type: ignore[union-attr]
    assert_kept(one, other, "encoder.salience", TEXTS, "salience")


@pytest.mark.parametrize("keep_by", ["surprisal", "salience"])
def test_a_checkpoint_may_choose_otherwise_later(keep_by: str, tmp_path: Path) -> None:
    """What it has learned is kept, and its choice of tokens is not."""
    run = saved_run(tmp_path)
    old = load_checkpoint(run / "last")
    raw = old.config.model_dump(mode="json")
    raw["encoder"] |= {"keep": 2, "d_z": 16}
    config = config_from_dict(raw, "test", {})
    save_checkpoint(run / "last", LatentWire.build(config))
    old = load_checkpoint(run / "last")
    raw["encoder"] |= {"keep_by": keep_by, "keep_from": "text"}
    raw["checkpoint"]["init_from"] = str(run)
    config = config_from_dict(raw, "test", {})
    new, origin = LatentWire.build(config), Origin.of(config)
    assert origin is not None and origin.lacks_salience == (keep_by == "salience")
    origin.take_up(new)
    assert encoder_of(new).weight.equal(encoder_of(old).weight)
    if keep_by == "salience":
        fitted(new)
    save_checkpoint(tmp_path / "new", new)
    again = load_checkpoint(tmp_path / "new")
    chosen = [system.sender.prepare(TEXTS[0]).chosen for system in (old, new, again)]
    assert chosen[0] != chosen[1] == chosen[2]
    raw["checkpoint"]["init_from"] = str(tmp_path / "new")
    same = Origin.of(config_from_dict(raw, "test", {}))
    assert same is not None and not same.lacks_salience
    raw["encoder"] |= {"keep_by": "surprisal", "keep_from": "window"}  # and back again
    config = config_from_dict(raw, "test", {})
    back, origin = LatentWire.build(config), Origin.of(config)
    assert origin is not None
    origin.take_up(back)
    raw["curriculum"]["train_only"] = ["b"]  # where the sender stays as it is, so does its choice
    with pytest.raises(ConfigError, match=r"was trained with encoder\.keep_(by|from)"):
        Origin.of(config_from_dict(raw, "test", {}))


def test_they_ask_for_a_choice() -> None:
    for key, value in (("keep_by", "salience"), ("keep_from", "text")):
        with pytest.raises(ConfigError, match=rf"encoder\.{key}: does nothing without encoder.keep"):
            config_from_dict({"encoder": {key: value}}, "x.json", {})


def test_white_space_before_a_token_does_not_count() -> None:
    text, offsets = "He sells 2 lamps", [(0, 2), (2, 8), (8, 10), (10, 16)]
    sent = SenderText(text, [1, 2, 3, 4], offsets, 4, (0,), [[0]], 1)
    asked = Passage("p", text, (Question("q", "How many?", ("2",)),))
    assert marks(sent, asked, set())[:, 0].tolist() == [0, 0, 1, 0]


def test_it_is_taken_up_as_a_checkpoint_keeps_it() -> None:
    torch.manual_seed(0)
    salience = Salience(3)
    salience.set(torch.randn(4), torch.randn(4, 2), torch.randn(2))
    assert all(torch.equal(kept, kept.bfloat16().float()) and kept.any() for kept in salience.buffers())
