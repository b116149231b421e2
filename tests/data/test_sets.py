from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from latentwire.backbone.text_model import TextTokenizer
from latentwire.config import Config
from latentwire.config.load import config_from_dict
from latentwire.core.errors import ConfigError, DataError, ModelError
from latentwire.data import data_fingerprint, facts, load_passages, load_texts
from latentwire.data.cloze import cloze_questions
from latentwire.data.facts import make_facts, split_of
from latentwire.data.hotpot import parse_hotpot
from latentwire.data.hub import rows_to_passages
from latentwire.data.prompts import PromptFormat
from latentwire.data.squad import parse_squad
from tests import ROOT
from tests.tiny import tiny_lm, tiny_tokenizer

SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": " Mira lives in Talden. ",
                    "qas": [
                        {"id": "1", "question": "Who?", "answers": [{"text": "Mira"}, {"text": "Mira"}]},
                        {"id": "2", "question": "When?", "answers": [], "is_impossible": True},
                    ],
                },
                {"context": "Nothing is asked.", "qas": []},
            ]
        }
    ]
}
HOTPOT = [
    {
        "_id": "7",
        "question": "Where?",
        "answer": "Orlin",
        "supporting_facts": [["A", 0], ["C", 1]],
        "context": [["A", ["One.", " Two."]], ["B", ["No."]], ["C", ["Three."]]],
    }
]


def test_squad_in_both_versions() -> None:
    (passage,) = parse_squad(SQUAD)
    assert passage.context == "Mira lives in Talden."
    assert [(q.id, q.answers) for q in passage.questions] == [("1", ("Mira",))]
    assert parse_squad(SQUAD, version2=True)[0].questions[1].answers == ("unanswerable",)
    paragraph = SQUAD["data"][0]["paragraphs"][0]
    assert parse_squad({"data": [{"paragraphs": [paragraph | {"context": " "}]}]}) == []  # nothing to read


def test_hotpot_keeps_the_paragraphs_that_the_answer_needs() -> None:
    (passage,) = parse_hotpot(HOTPOT)
    assert passage.context == "A: One. Two.\nC: Three."
    assert passage.questions[0].answers == ("Orlin",)
    (whole,) = parse_hotpot(HOTPOT, "all")
    assert whole.context == "A: One. Two.\nB: No.\nC: Three." and whole.questions == passage.questions
    assert parse_hotpot([HOTPOT[0] | {"answer": " "}]) == []  # nothing to train on or to compare with


def test_hub_rows_become_the_same_passages() -> None:
    rows = [
        {"id": "1", "context": "X is a city.", "question": " What is X?", "answers": {"text": ["a city"]}},
        {"id": "2", "context": "X is a city. ", "question": "What is a city?", "answers": {"text": ["X"]}},
        {"id": "3", "context": "X is a city.", "question": "Why?", "answers": {"text": [" "]}},
    ]
    (passage,) = rows_to_passages("squad", rows)
    assert passage.context == "X is a city."
    assert [question.text for question in passage.questions] == ["What is X?", "What is a city?"]
    assert rows_to_passages("squad_v2", rows)[0].questions[2].answers == ("unanswerable",)
    hub: dict[str, Any] = {
        "id": "7",
        "question": "Where?",
        "answer": "Orlin",
        "supporting_facts": {"title": ["A", "C"], "sent_id": [0, 1]},
        "context": {"title": ["A", "B", "C"], "sentences": [["One.", " Two."], ["No."], ["Three."]]},
    }
    for context in ("supporting", "all"):
        assert rows_to_passages("hotpot", [hub], context) == parse_hotpot(HOTPOT, context)


def test_facts_are_the_same_for_a_seed_and_answers_stand_in_the_text_once() -> None:
    passages = make_facts(3, "train", 200)
    assert passages == make_facts(3, "train", 200) != make_facts(4, "train", 200)
    assert len({p.context for p in passages}) == len(passages)
    for passage in passages:
        for question in passage.questions:
            assert passage.context.count(question.answers[0]) == 1, (passage.context, question)
            assert question.answers[0] not in question.text


def test_no_value_of_facts_is_part_of_another() -> None:
    """Else it would stand in the text twice, or a part of the right answer would be one."""
    names = facts._Names(random.Random(0), "train")
    found = iter(["48", "148", "4", "48", "71", "7", "1"])
    names.kinds["number"] = lambda: next(found)
    assert [names.value("number"), names.value("number")] == ["48", "71"]


def test_the_splits_of_facts_share_no_name() -> None:
    invented = re.compile(r"\b[A-Z][a-z]{4,}\b")
    train, held_out = (
        {word for p in make_facts(0, split, 1500) for q in p.questions for word in invented.findall(q.answers[0])}
        for split in ("train", "validation")
    )
    # What the two have in common are words of the fixed lists (colours, trades), never a made-up name.
    made_up = {word for word in train | held_out if word not in train & held_out}
    assert made_up and {split_of(w) for w in held_out & made_up} == {"validation"}
    assert all(split_of(word) == "train" for word in train & made_up)
    names = {q.text for p in make_facts(0, "train", 1500) for q in p.questions}
    assert not names & {q.text for p in make_facts(0, "validation", 1500) for q in p.questions}


def test_passages_are_known_by_all_that_is_asked_and_accepted() -> None:
    (passage,) = parse_squad(SQUAD)
    (question,) = passage.questions
    others = [
        replace(passage, context="Mira lives in Orlin."),
        replace(passage, questions=(replace(question, text="Who lives there?"),)),
        replace(passage, questions=(replace(question, answers=("Mira", "She")),)),
        replace(passage, questions=(question, question)),
    ]
    assert len({data_fingerprint([one]) for one in (passage, *others)}) == 5
    assert data_fingerprint([replace(passage, id="another")]) == data_fingerprint([passage])


def config(**data: Any) -> Any:
    return Config.model_validate({"data": data}).data


def test_files_and_limits(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(SQUAD))
    assert len(load_passages(config(dataset="squad", data_path=[str(path), str(path)]), "train")) == 2
    path.write_text(json.dumps(HOTPOT))
    for context in ("supporting", "all"):
        wanted = config(dataset="hotpot", data_path=str(path), hotpot_context=context)
        assert load_passages(wanted, "train") == parse_hotpot(HOTPOT, context)
    facts = load_passages(config(dataset="facts"), "validation", 7)
    assert sum(len(p.questions) for p in facts) == 7


@pytest.mark.parametrize(
    ("dataset", "text", "message"),
    [
        ("squad", None, r"data\.data_path: .*set\.json: no such file"),
        ("squad", "{", r"set\.json: not valid JSON"),
        ("squad", '{"data": [{}]}', r"not in the format of squad: key 'paragraphs' is missing"),
        ("squad", "[1]", r"not in the format of squad, whose questions lie under data, paragraphs, qas$"),
        ("squad", '{"data": []}', r"no question in it"),
        ("hotpot", json.dumps(SQUAD), r"not in the format of hotpot, a list of questions with their context$"),
        ("squad", f'{{"data": {"9" * 5000}}}', r"set\.json: not valid JSON"),
        (
            "squad",
            json.dumps(SQUAD).replace("?", "\\ud800?"),
            r"set\.json: passage '0-0' is not valid Unicode: surrogates not allowed",
        ),
        (
            "squad",
            json.dumps(SQUAD).replace('"Mira"', '"Mira \\ud800"'),
            r"set\.json: passage '0-0' is not valid Unicode: surrogates not allowed",
        ),
    ],
)
def test_bad_files_end_in_one_line(tmp_path: Path, dataset: str, text: str | None, message: str) -> None:
    path = tmp_path / "set.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_passages(config(dataset=dataset, data_path=str(path)), "train")
    assert "\n" not in str(caught.value)


def test_texts_are_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("one\n\n two \n")
    assert load_texts(str(path)) == ["one", "two"]
    path.write_bytes("\ufeffone\r\ntwo\u2028goes on\n".encode())
    assert load_texts(str(path)) == ["one", "two\u2028goes on"]
    path.write_text("\n")
    with pytest.raises(DataError, match="no text in it"):
        load_texts(str(path))
    path.write_bytes(b"one\xff\n")
    with pytest.raises(DataError, match=r"data\.text_path: .*t\.txt: not a UTF-8 text: invalid start byte$"):
        load_texts(str(path))
    with pytest.raises(DataError, match=r"data\.text_path: .*: could not be read: Is a directory$"):
        load_texts(str(tmp_path))


CLOZE = {
    "In 1871 the tower was built by Edith Calloway for the town of Talden.": [
        ("In ____ the tower was built by Edith", "1871"),
        ("In 1871 the tower was built by ____ for the town of Talden", "Edith Calloway"),
        ("tower was built by Edith Calloway for the town of ____", "Talden"),
    ],
    "Lamps were lit. Unlike the Talden of old, it came to Edith Calloway on 3 May 1902.": [
        ("Unlike the ____ of old, it came to Edith", "Talden"),
        ("Unlike the Talden of old, it came to ____ on 3 May 1902", "Edith Calloway"),
        ("the Talden of old, it came to Edith Calloway on ____", "3 May 1902"),
    ],
    "Mira and Mira met. The end": [],
    "nothing here has a name": [],
}


@pytest.mark.parametrize("text", CLOZE)
def test_a_cloze_question_leaves_out_a_name_or_a_number(text: str) -> None:
    assert list(cloze_questions(text)) == CLOZE[text]


def test_cloze_passages_are_trained_on_beside_the_others(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("\n".join([*CLOZE, "He met Ada Byron, Tom Reed, Ann Lee and Joe Hill."]))
    config = Config.model_validate({"data": {"dataset": "facts", "text_path": str(tmp_path / "text"), "cloze": 2}}).data
    passages = load_passages(config, "train", 40)
    made = {p.context: p.questions for p in load_passages(config, "train") if p.id.startswith("cloze")}
    assert list(map(len, made.values())) == [2, 2, 2]  # texts that give no question are left out
    assert all(q.answers[0] in text and q.answers[0] not in q.text for text, qs in made.items() for q in qs)
    assert sum(len(p.questions) for p in passages) == 40
    assert load_passages(config, "train", 40) == passages
    assert not any(p.id.startswith("cloze") for p in load_passages(config, "validation", 40))
    with pytest.raises(ConfigError, match=r"data\.cloze: asks for data\.text_path"):
        config_from_dict({"data": {"cloze": 2}}, "test", {})


def test_the_example_questions_are_sound() -> None:
    raw = json.loads((ROOT / "examples" / "questions.json").read_text())
    assert len(parse_squad(raw)) == 25 and sum(len(p.questions) for p in parse_squad(raw)) == 100
    for article in raw["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                (answer,) = qa["answers"]
                assert paragraph["context"][answer["answer_start"] :].startswith(answer["text"])


def test_a_limit_draws_training_passages_and_keeps_the_order_of_held_out_ones(tmp_path: Path) -> None:
    paragraphs = [
        {"context": f"Passage {i}.", "qas": [{"question": f"Which {i}?", "answers": [{"text": str(i)}]}]}
        for i in range(40)
    ]
    (tmp_path / "many.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    path = str(tmp_path / "many.json")

    def drawn(seed: int, split: str) -> list[str]:
        config = Config.model_validate(
            {"data": {"dataset": "squad", "data_path": path, "eval_path": path, "seed": seed}}
        )
        return [p.context for p in load_passages(config.data, split, 8)]

    first = [f"Passage {i}." for i in range(8)]
    assert drawn(0, "train") == drawn(0, "train") != first and drawn(0, "train") != drawn(1, "train")
    assert drawn(0, "validation") == drawn(1, "validation") == first


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_anchor_and_bos_stand_where_they_are_asked_for(family: str) -> None:
    tokenizer = tiny_tokenizer(family)

    def prompt(**anchor: Any) -> PromptFormat:
        return PromptFormat(tokenizer, Config.model_validate({"anchor": anchor}).anchor, 2)

    plain, anchored = prompt(), prompt(text=" In short:")
    assert tokenizer.decode(plain.tail("Who?")) == "\nQuestion: Who?\nAnswer:"
    assert tokenizer.decode(anchored.tail("Who?")) == " In short:\nQuestion: Who?\nAnswer:"
    assert plain.head == [2] == prompt(bos=True).head and prompt(bos=False).head == [] == prompt(bos="none").head
    short = prompt(question="\n{question} {name}:", text=" In short:")
    assert tokenizer.decode(short.tail("{name}?")) == " In short:\n{name}? {name}:"
    for wrong in ("\nAnswer:", "{question}{question}"):
        with pytest.raises(ValidationError, match=r"\{question\} has to stand in it once"):
            prompt(question=wrong)
    after = prompt(bos="after", text=" In short:")
    assert after.head == [] and after.tail("Who?") == [2, *anchored.tail("Who?")]
    assert after.span() == [2, *anchored.span()]


def test_white_space_between_a_text_and_its_continuation_is_the_continuation_s() -> None:
    """Tokens begin with it: cut before it, both sides are as they are in the whole."""
    prompt = PromptFormat(tiny_tokenizer("llama"), Config().anchor, 2)
    spaced, plain = prompt.rest_and("Who? \n", "Mira"), prompt.rest_and("Who?", " \nMira")
    assert spaced == plain and spaced[0] == prompt.rest("Who?")
    assert spaced[0] + spaced[1] == prompt.rest("Who? \nMira")


def test_an_answer_ends_with_its_line_also_where_that_is_no_token_of_its_own() -> None:
    """Llama 3's and Qwen's pre-tokenizers join punctuation and the line breaks behind it."""
    own = Tokenizer(models.BPE())
    joined = Regex(r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+| ?\p{L}+|\p{N}|\s+")
    split = pre_tokenizers.Split(joined, "isolated")
    own.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    own.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<eos>"], initial_alphabet=alphabet, min_frequency=2)
    own.train_from_iterator(["Paris.\n", "(1990)\n", "U.S.\n\n", " a\n"] * 9, trainer)
    prompt = PromptFormat(PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<eos>"), Config().anchor, None)
    for answer in ("Paris", "U.S.", "(1990)", "Paris."):
        ids = prompt.answer(answer)
        assert ids[-1] in prompt.stop and not set(ids[:-1]) & set(prompt.stop), answer
        assert prompt.read(ids) == answer


def test_special_tokens_that_a_text_spells_out_are_text() -> None:
    tokenizer = tiny_tokenizer("llama")
    prompt = PromptFormat(tokenizer, Config().anchor, 2)
    special = set(tokenizer.all_special_ids)
    for ids in (prompt.tail("Who<eos>?"), prompt.gold("a<bos>b"), prompt.opening("<eos>")):
        assert not special & set(ids)
    assert not special & set(TextTokenizer("tiny", tokenizer).tokenize_with_offsets("a<eos>b")[0])
    assert not special & set(tiny_lm("llama").tokenize_with_offsets("a<eos>b")[0])


def test_a_tokenizer_that_cuts_a_framed_text_otherwise_is_refused() -> None:
    class Cutting(PreTrainedTokenizerFast):
        def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
            return {"input_ids": [1, 6, 7] if add_special_tokens else [5]}

    tokenizer = Cutting(tokenizer_object=tiny_tokenizer("llama").backend_tokenizer)
    with pytest.raises(ModelError, match="model 'odd': its tokenizer splits a text otherwise with special tokens"):
        _ = TextTokenizer("odd", tokenizer).frame


def test_a_chat_template_stands_around_the_context() -> None:
    tokenizer = tiny_tokenizer("llama")
    config = Config.model_validate({"anchor": {"chat_template": True}}).anchor
    with pytest.raises(ConfigError, match=r"anchor\.chat_template: .* no chat template"):
        PromptFormat(tokenizer, config, 2)
    tokenizer.chat_template = (
        "{% for m in messages %}<bos>[user] {{ m['content'] }} [end]{% endfor %}"
        "{% if add_generation_prompt %} [model]{% endif %}"
    )
    kept = tokenizer.chat_template
    for odd in (kept.replace("m['content']", "m['role']"), kept.replace("[user]", "{{ m['content'] }}")):
        tokenizer.chat_template = odd
        with pytest.raises(ConfigError, match=r"anchor\.chat_template: .* does not show the user's turn just once"):
            PromptFormat(tokenizer, config, 2)
    tokenizer.chat_template = kept
    prompt = PromptFormat(tokenizer, config, 2)
    assert tokenizer.decode(prompt.head) == "<bos>[user] " and prompt.head[0] == tokenizer.bos_token_id
    assert tokenizer.decode(prompt.tail("Who?")) == "\nQuestion: Who?\nAnswer: [end] [model]"
    assert prompt.answer("Mira")[-1] == tokenizer.eos_token_id
    assert prompt.stop == [tokenizer.eos_token_id]  # "[" may stand in an answer
    tokenizer.add_special_tokens({"additional_special_tokens": ["[end]"]})
    own = tokenizer.convert_tokens_to_ids("[end]")
    prompt = PromptFormat(tokenizer, config, 2)
    assert prompt.stop == sorted([tokenizer.eos_token_id, own])
    assert prompt.tail("Who [end] there?").count(own) == 1  # of the template alone
    before, continuation = prompt.rest_and("Who?", " Mira<eos>")
    assert before == prompt.rest("Who?") and tokenizer.decode(continuation) == " Mira<eos>"
    assert tokenizer.eos_token_id not in continuation
