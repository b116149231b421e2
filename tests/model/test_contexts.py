"""Text, embeddings and slots are read through one interface: they must agree where they carry the same."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from latentwire.backbone.context import Context
from latentwire.backbone.padding import pad_left
from latentwire.config import Config
from latentwire.config.sections.training import LossesConfig
from latentwire.core.names import LATENT
from latentwire.data.example import Passage, Question
from latentwire.model.consensus import consensus
from latentwire.model.encoding import (
    SPAN_CUE,
    SPAN_LENGTH,
    ReceiverText,
    choose_questions,
    copy_spans,
    encode_for_receiver,
    encode_for_sender,
    pack_questions,
)
from latentwire.model.receiver import Receiver
from latentwire.model.system import LatentWire
from tests.systems import small_config, small_passages, small_system
from tests.tiny import FAMILIES, save_tiny, tiny_lm

PASSAGES = [
    Passage(
        "a",
        "Mira Voss founded the workshop in Talden and sold red lamps there. The keeper of the boat lives in Orlin.",
        (Question("1", "Where is the workshop?", ("Talden",)), Question("2", "Who sold lamps?", ("Mira Voss",))),
    ),
    Passage("b", "The green door is in Brannock.", (Question("3", "What colour is the door?", ("green",)),)),
]

CHAT = (
    "{% for m in messages %}[user] {{ m['content'] }} [end]{% endfor %}"
    "{% if add_generation_prompt %} [model]{% endif %}"
)


def receiver_of(family: str, window: int, sections: dict[str, dict] | None = None, **model: object) -> Receiver:
    base = {"encoder": {"window": window, "d_z": 8}, "model": {"dtype": "float32"}}
    lm = tiny_lm(family, **model)
    lm.tokenizer.chat_template = CHAT
    return Receiver(family, lm, Config.model_validate(base | (sections or {})))


def texts_of(receiver: Receiver, sender_family: str, window: int) -> list:
    sender = tiny_lm(sender_family)
    out = []
    for passage in PASSAGES:
        sent = encode_for_sender(sender, passage.context, window, None)
        out.append(encode_for_receiver(receiver.lm, receiver.prompt, passage, sent))
    return out


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_own_slots_at_window_1_equal_the_text(family: str) -> None:
    receiver = receiver_of(family, window=1)
    texts = texts_of(receiver, family, 1)
    tails = [receiver.prompt.tail(p.questions[0].text) for p in PASSAGES]
    block = pack_questions([[(tail, [5, 6])] for tail in tails], receiver.lm.pad_id)
    text = receiver.lm.continue_from(receiver.read_text([t.ids for t in texts]), block.ids, block.mask)
    own = receiver.lm.continue_from(receiver.read_own(texts), block.ids, block.mask)
    keep = block.mask
    torch.testing.assert_close(receiver.lm.logits(own[keep]), receiver.lm.logits(text[keep]), atol=2e-4, rtol=1e-4)


ANCHORS = [
    {"text": " In short:"},
    {"bos": "after", "text": " In short:"},
    {"bos": "after"},
    {"bos": "none"},
    {"chat_template": True, "text": " In short:"},
]


@pytest.mark.parametrize("slots", [True, False])
@pytest.mark.parametrize("anchor", ANCHORS, ids=str)
@torch.no_grad()
def test_both_readers_read_every_form_of_prompt_as_the_text_is_read(anchor: dict, slots: bool) -> None:
    """At window 1 a reader is given the text itself, so the whole prompt must be what Transformers makes of its ids."""
    for family in ("llama", "gemma3"):
        adapter = {} if slots else {"calibration": "none"}
        more = {"features": {"use_deep_prefix": slots}, "adapter": adapter, "anchor": anchor}
        receiver = receiver_of(family, 1, more)
        text = texts_of(receiver, family, 1)[0]
        tail, answer = receiver.prompt.tail("Where is it?"), receiver.prompt.gold("Talden")
        whole = text.ids + tail + answer
        assert whole.count(receiver.lm.bos_id) == (anchor.get("bos") != "none" and not anchor.get("chat_template"))
        if anchor.get("bos") == "after":
            assert text.head_len == 0 and tail[0] == receiver.lm.bos_id == receiver.prompt.span()[0]
        logits = receiver.lm.model(torch.tensor([whole])).logits[0, -len(answer) - 1 : -1].float()
        expected = -torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None]).sum()
        for context in (receiver.read_own([text]), receiver.read_text([text.ids])):
            assert int(context.mask.sum()) == text.head_len + text.latents
            nll = receiver.score(context, [(tail, answer)]).nll[0]
            torch.testing.assert_close(nll, expected, atol=2e-4, rtol=1e-4)
        generated = receiver.generate(receiver.read_own([text]), [tail], 5)
        assert generated == receiver.generate(receiver.read_text([text.ids]), [tail], 5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_text_in_two_parts_equals_transformers_on_the_whole(family: str) -> None:
    receiver = receiver_of(family, window=4)
    text = texts_of(receiver, "llama", 4)[0]
    tail, answer = receiver.prompt.tail("Where is the workshop?"), receiver.prompt.gold("Talden")
    whole = torch.tensor([text.ids + tail + answer])
    logits = receiver.lm.model(whole).logits[0, -len(answer) - 1 : -1].float()
    expected = -torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None]).sum()
    scores = receiver.score(receiver.read_text([text.ids]), [(tail, answer)])
    torch.testing.assert_close(scores.nll[0], expected, atol=1e-4, rtol=1e-4)
    assert bool(scores.first_correct[0]) == (int(logits[0].argmax()) == answer[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_replay_generates_what_the_text_generates(family: str) -> None:
    receiver = receiver_of(family, window=4)
    texts = texts_of(receiver, "qwen2", 4)
    tails = [receiver.prompt.tail(p.questions[0].text) for p in PASSAGES]
    rows = [t.ids for t in texts]
    text = receiver.generate(receiver.read_text(rows), tails, 8)
    assert receiver.generate(receiver.read_text(rows, as_embeddings=True), tails, 8) == text
    # ... and it is what plain `generate` makes of the whole prompt.
    for row, tail, answer in zip(rows, tails, text, strict=True):
        out = receiver.lm.model.generate(
            torch.tensor([row + tail]),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=receiver.prompt.stop,
            pad_token_id=receiver.lm.pad_id,
        )
        assert receiver.prompt.read(out[0, len(row + tail) :].tolist()) == answer


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_reads_dense_rows(family: str) -> None:
    """From a slice of the prefill, torch multiplies 500 times as slowly: it copies the head's weights for each row."""
    receiver = receiver_of(family, window=4)
    seen: list[torch.Tensor] = []
    receiver.lm.model.get_output_embeddings().register_forward_hook(lambda head, args, out: seen.append(args[0]))
    texts = texts_of(receiver, "llama", 4)
    receiver.generate(receiver.read_own(texts), [receiver.prompt.tail(p.questions[0].text) for p in PASSAGES], 2)
    assert seen and all(rows.stride() == torch.empty(rows.shape).stride() for rows in seen)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_slots_do_not_depend_on_padding(family: str) -> None:
    receiver = receiver_of(family, window=4)
    texts = texts_of(receiver, "llama", 4)
    assert texts[0].latents != texts[1].latents
    tails = [receiver.prompt.tail(p.questions[0].text) for p in PASSAGES]
    pairs = [(tail, receiver.prompt.gold("Talden")) for tail in tails]
    together = receiver.score(receiver.read_own(texts), pairs).nll
    alone = [receiver.score(receiver.read_own([t]), [pair]).nll for t, pair in zip(texts, pairs, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    generated = receiver.generate(receiver.read_own(texts), tails, 6)
    assert generated == [
        receiver.generate(receiver.read_own([t]), [tail], 6)[0] for t, tail in zip(texts, tails, strict=True)
    ]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_generation_from_slots_equals_recomputation(family: str) -> None:
    """Each generated token is the best one when everything behind the slots is read again in one pass."""
    receiver = receiver_of(family, window=4)
    text = texts_of(receiver, "llama", 4)[0]
    tail = receiver.prompt.tail("Where is the workshop?")
    ids, mask = torch.tensor([tail]), torch.ones(1, len(tail), dtype=torch.bool)
    new = receiver.lm.generate(receiver.read_own([text]), ids, mask, 6, stop=[])[0]
    both = torch.cat([ids[0], new])[None]
    hidden = receiver.lm.continue_from(receiver.read_own([text]), both, torch.ones_like(both, dtype=torch.bool))
    best = receiver.lm.logits(hidden)[0, len(tail) - 1 : -1].argmax(-1)
    assert best.tolist() == new.tolist()


@torch.no_grad()
def test_the_first_token_of_an_answer_is_scored_apart() -> None:
    """Also of answers that are shorter than others beside them."""
    receiver = receiver_of("llama", window=4)
    text = texts_of(receiver, "llama", 4)[0]
    tail = receiver.prompt.tail("Where is the workshop?")
    ids, mask = pad_left([tail], receiver.lm.pad_id)
    one, two = receiver.lm.generate(receiver.read_own([text]), ids, mask, 2, stop=[])[0].tolist()
    answers = [[one, two], [one, two + 1], [one], [two + 1 if one == two else two]]
    scores = receiver.score(receiver.read_own([text] * 4), [(tail, answer) for answer in answers])
    assert scores.first_correct.tolist() == [True, True, True, False]
    assert scores.all_correct.tolist() == [True, False, True, False]


@torch.no_grad()
def test_what_a_reader_should_make_is_that_of_the_untouched_model() -> None:
    """So that one message serves the receiver with LoRA and the one without."""
    receiver = receiver_of("llama", window=4)
    texts = texts_of(receiver, "llama", 4)
    before = receiver.targets(texts)[0]
    for weight in receiver.add_adapter(LATENT).trainable_parameters():
        weight.add_(0.1)
    with receiver.using(LATENT):
        assert receiver.targets(texts)[0].equal(before)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_packed_questions_equal_single_ones(family: str) -> None:
    receiver = receiver_of(family, window=4)
    text = texts_of(receiver, "llama", 4)[0]
    packed = pack_questions([text.questions], receiver.lm.pad_id)
    loss = receiver.loss(receiver.read_own([text]), packed).total
    scores = receiver.score(receiver.read_own([text, text]), text.questions)
    torch.testing.assert_close(loss, scores.nll.sum() / scores.tokens.sum(), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_sliding_layers_forget_what_is_too_far_back() -> None:
    """With a window shorter than the text, our masks and Transformers' own give the same logits."""
    receiver = receiver_of("gemma3", window=1, sliding_window=8)
    text = texts_of(receiver, "gemma3", 1)[0]
    tail, answer = receiver.prompt.tail("Where?"), receiver.prompt.gold("Talden")
    whole = torch.tensor([text.ids + tail + answer])
    logits = receiver.lm.model(whole).logits[0, -len(answer) - 1 : -1].float()
    expected = -torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None]).sum()
    for context in (receiver.read_text([text.ids]), receiver.read_own([text])):
        torch.testing.assert_close(receiver.score(context, [(tail, answer)]).nll[0], expected, atol=1e-4, rtol=1e-4)


def test_the_number_of_threads_is_the_one_asked_for(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        receiver = str(save_tiny("llama", tmp_path))
        config = small_config(
            model={"dtype": "float32", "receivers": {"a": receiver}},
            encoder={"model": receiver, "layers": [0], "window": 4, "d_z": 8},
            system={"threads": before + 1},
        )
        LatentWire.build(config)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_copied_spans_are_packed_behind_the_questions(family: str) -> None:
    receiver = receiver_of(family, window=4)
    texts = texts_of(receiver, "llama", 4)
    plain = receiver.pack(texts, random.Random(0))
    assert not plain.spans.any()
    receiver.config = receiver.config.model_copy(
        update={"losses": LossesConfig.model_validate({"copy_weight": 0.5, "copy_spans": 3})}
    )
    assert not receiver.pack(texts, random.Random(0), copying=False).spans.any()
    block = receiver.pack(texts, random.Random(0))
    labels = block.labels != -100
    assert int((labels & block.spans).sum(1)[0]) == 3 * SPAN_LENGTH
    assert torch.equal(block.labels[0][labels[0] & ~block.spans[0]], plain.labels[0][plain.labels[0] != -100])
    context = receiver.lm.tokenizer.decode(texts[0].ids[texts[0].head_len :])
    for tail, answer in copy_spans(texts[0], receiver.prompt, 5, random.Random(1)):
        assert tail[: -len(receiver.prompt.span())] and receiver.lm.tokenizer.decode(tail).startswith("\nText:")
        assert receiver.lm.tokenizer.decode(tail[len(receiver.prompt.span()) :] + answer).strip() in context
    assert copy_spans(replace(texts[0], ids=texts[0].ids[:20]), receiver.prompt, 5, random.Random(1)) == []

    both = receiver.loss(receiver.read_own(texts), block)
    parts = both.metrics
    assert both.total.item() == pytest.approx(parts["answer_ce"] + 0.5 * parts["copy_ce"], rel=1e-5)
    alone = receiver.loss(receiver.read_own(texts), plain)
    without = alone.metrics
    assert without["answer_ce"] == pytest.approx(parts["answer_ce"], rel=1e-4) == alone.total.item()
    assert without["first_acc"] == parts["first_acc"] and "copy_ce" not in without


@torch.no_grad()
def test_what_sliding_layers_forget_does_not_depend_on_longer_questions_beside_it() -> None:
    receiver = receiver_of("gemma3", window=4, sliding_window=24)
    ids = receiver.prompt.head + receiver.lm.tokenize_with_offsets(" ".join(p.context for p in PASSAGES))[0]
    tails = [receiver.prompt.tail(q) for q in ("Who?", "Where does the keeper of the green boat live, in which town?")]
    assert len(ids) > 24 and len(tails[1]) > len(tails[0]) + 8
    own = (ids[: len(ids) // 2], ids)  # contexts of other lengths too
    for first, second in (own, own[::-1]):
        together = receiver.lm.generate(receiver.read_text([first, second]), *pad_left(tails, 0), 8, [])
        for row, text, tail in zip(together.tolist(), (first, second), tails, strict=True):
            whole = torch.tensor([text + tail])
            alone = receiver.lm.model.generate(
                whole, max_new_tokens=8, do_sample=False, eos_token_id=[], pad_token_id=0
            )
            assert row == alone[0, whole.shape[1] :].tolist()


@torch.no_grad()
def test_generation_forgets_what_scoring_forgets() -> None:
    """A window shorter than the context: the masks of `generate` and of scoring must agree."""
    receiver = receiver_of("gemma3", window=4, sliding_window=6)
    texts = texts_of(receiver, "llama", 4)
    tail = receiver.prompt.tail("Where is the workshop?")
    for read in (receiver.read_own, lambda t: receiver.read_text([x.ids for x in t])):
        assert int(read(texts).mask.sum(1)[0]) > 6
        ids, mask = torch.tensor([tail, tail]), torch.ones(2, len(tail), dtype=torch.bool)
        out = receiver.lm.generate(read(texts), ids, mask, 8, [0])
        for taken in range(1, out.shape[1]):
            whole = torch.cat([ids, out[:, :taken]], 1)
            hidden = receiver.lm.continue_from(read(texts), whole, torch.ones_like(whole, dtype=torch.bool))
            assert receiver.lm.logits(hidden[:, -1]).argmax(-1).tolist() == out[:, taken].tolist()


@pytest.mark.parametrize(
    ("family", "model"), [*((family, {}) for family in FAMILIES), ("gemma3", {"sliding_window": 6})]
)
@torch.no_grad()
def test_candidates_begin_with_the_likeliest_tokens_and_go_on_greedily(
    family: str, model: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = receiver_of(family, window=4, **model)
    texts, lm, prompt = texts_of(receiver, "llama", 4), receiver.lm, receiver.prompt
    tails = [prompt.tail(q) for q in ("Who?", "Where does the keeper of the green boat live?")]

    def after(text: ReceiverText, ids: list[int]) -> Tensor:
        hidden = lm.continue_from(receiver.read_own([text]), torch.tensor([ids]), torch.ones(1, len(ids)).bool())
        return lm.logits(hidden[0, -1])

    greedy = lm.generate(receiver.read_own(texts), *pad_left(tails, 0), 6, [])
    prompt.stop = [int(greedy[0, 3]), int(greedy[1, 0])]  # one that comes late, and one with which an answer begins
    monkeypatch.setattr("latentwire.model.generation.TOGETHER", 2)
    found, ended = receiver.candidates(receiver.read_own(texts), tails, 6, 4), 0
    for text, tail, own in zip(texts, tails, found, strict=True):
        for first, candidate in zip(after(text, tail).topk(4).indices.tolist(), own, strict=True):
            tokens = [first]
            while len(tokens) < 6 and tokens[-1] not in prompt.stop:
                tokens.append(int(after(text, tail + tokens).argmax()))
            ended += tokens[-1] in prompt.stop
            assert candidate.text == prompt.read(tokens)
            nll = receiver.score(receiver.read_own([text]), [(tail, tokens)]).nll
            assert candidate.logp == pytest.approx(-nll.item(), abs=2e-3)
    assert 2 <= ended < 8 and found[1][0].text == prompt.read([int(greedy[1, 0])])
    chosen = receiver.generate(receiver.read_own(texts), tails, 6, candidates=4)
    assert chosen == [consensus(own) for own in found]
    short = receiver.candidates(receiver.read_own(texts), tails, 1, 2)  # answers of a single token
    for text, tail, own in zip(texts, tails, short, strict=True):
        best = after(text, tail).log_softmax(-1).topk(2)
        assert [c.logp for c in own] == pytest.approx(best.values.tolist(), abs=1e-3)
    monkeypatch.setattr("latentwire.model.generation.ODDS", 1.5)
    likely = receiver.candidates(receiver.read_own(texts), tails, 1, 10**6)  # more than there are tokens
    for text, tail, own in zip(texts, tails, likely, strict=True):
        probability = after(text, tail).softmax(-1)
        assert len(own) == pytest.approx(int((probability > probability.max() / 1.5).sum()), abs=1)
        assert len(own) < len(probability) - 1


@pytest.mark.parametrize("chat", [False, True])
@torch.no_grad()
def test_what_nobody_reads_of_a_candidate_does_not_count(chat: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line may end without a stop token: in "\\n\\n" as one token, and in a chat, where lines end no answer."""
    receiver = receiver_of("gemma3", 4, {"anchor": {"chat_template": chat}})
    texts, prompt = texts_of(receiver, "llama", 4)[:1], receiver.prompt
    tail = prompt.tail("Who?")
    tokens = receiver.lm.generate(receiver.read_own(texts), *pad_left([tail], 0), 8, [])[0].tolist()
    end = next(n for n in range(1, 8) if tokens[n] != tokens[0])  # taken for an empty line from now on
    written = {tokens[end]: "\n\n"}
    monkeypatch.setattr(
        prompt, "tokenizer", SimpleNamespace(decode=lambda ids, **_: "".join(written.get(i, "x") for i in ids))
    )
    assert not set(tokens) & set(prompt.stop)
    best = receiver.candidates(receiver.read_own(texts), [tail], 8, 2)[0][0]
    nll = receiver.score(receiver.read_own(texts), [(tail, tokens[: end + 1])]).nll
    assert best.text == "x" * end and best.logp == pytest.approx(-nll.item(), abs=2e-3)


@pytest.mark.parametrize(
    ("family", "model"), [*((family, {}) for family in FAMILIES), ("gemma3", {"sliding_window": 6})]
)
@torch.no_grad()
def test_answers_that_have_ended_leave_the_batch_and_the_others_go_on(
    family: str, model: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = receiver_of(family, window=4, **model)
    texts, prompt, lm = texts_of(receiver, "llama", 4) * 2, receiver.prompt, receiver.lm
    tails = [prompt.tail(q) for q in ("Who?", "Where does the keeper of the green boat live?", "When was it?", "Why?")]
    free = lm.generate(receiver.read_own(texts), *pad_left(tails, 0), 11, [])
    prompt.stop = [int(free[0, 2]), int(free[1, 6])]
    whole = lm.generate(receiver.read_own(texts), *pad_left(tails, 0), 11, prompt.stop)
    sizes: list[int] = []

    def counted(context: Context, ids: Tensor, *rest: Any, **more: Any) -> Tensor:
        sizes.append(len(ids))
        return generate(context, ids, *rest, **more)

    generate = lm.generate
    monkeypatch.setattr("latentwire.model.generation.TOGETHER", 2)
    monkeypatch.setattr(lm, "generate", counted)
    assert receiver.generate(receiver.read_own(texts), tails, 11) == [prompt.read(row) for row in whole.tolist()]
    ends = [next((n for n, token in enumerate(row) if token in prompt.stop), 99) for row in free.tolist()]
    assert sizes == [sum(end >= 2 * n for end in ends) for n in range(len(sizes))] and sizes[0] > sizes[-1] > 0
    assert len(sizes) == 6 or max(ends) < 10
    prompt.stop = []
    whole = generate(receiver.read_text([[]]), *pad_left([[5]], 0), 11, [])  # one token behind nothing at all
    assert receiver.generate(receiver.read_text([[]]), [[5]], 11) == [prompt.read(whole[0].tolist())]


def test_so_many_questions_are_drawn_and_each_has_its_turn() -> None:
    pairs = [([i], [i]) for i in range(6)]
    drawn = [choose_questions(pairs, 2, random.Random(seed)) for seed in range(30)]
    assert all(len(own) == 2 for own in drawn) and {tail[0] for own in drawn for tail, _ in own} == set(range(6))
    assert choose_questions(pairs[:2], 2, random.Random(0)) == pairs[:2]
    system = small_system(small_config(data={"questions_per_passage": 1}), ("llama",))
    texts = [system.prepare(p)[1]["a"] for p in small_passages(2)]
    assert system.receivers["a"].pack(texts, random.Random(0)).segments.max() == 1


def test_spans_begin_anywhere_in_the_passage() -> None:
    receiver = receiver_of("llama", window=4)
    text = texts_of(receiver, "llama", 4)[0]
    head, cue = text.head_len, len(receiver.prompt.span())
    pairs = copy_spans(text, receiver.prompt, 2000, random.Random(0))
    spans = {tuple(tail[cue:] + answer) for tail, answer in pairs}
    length = SPAN_CUE + SPAN_LENGTH
    assert (
        spans == {tuple(text.ids[i : i + length]) for i in range(head, len(text.ids) - length + 1)} and len(spans) > 9
    )
