from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentwire.model.chunks import split_text
from tests.tiny import tiny_tokenizer

STORY = "Mira lives in Orlin. She sells red lamps! Does she?\nThe boat is green and the harp is old. " * 6


def offsets_of(family: str) -> object:
    tokenizer = tiny_tokenizer(family)
    return lambda text: tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@settings(max_examples=40)
@given(st.text(max_size=300), st.integers(1, 40), st.integers(1, 50))
def test_chunks_are_the_text_and_short_enough(family: str, text: str, limit: int, piece: int) -> None:
    count = offsets_of(family)
    chunks = list(split_text((text[i : i + piece] for i in range(0, len(text), piece)), limit, count))
    assert "".join(chunks) == text and all(chunks)
    for chunk in chunks:
        assert len(chunk) == 1 or len(count(chunk)) <= limit


def test_chunks_end_behind_lines_then_sentences_then_words() -> None:
    words = lambda text: [(i, i + 1) for i in range(len(text))]  # noqa: E731  one token a character
    assert list(split_text(["one two\nthree. four"], 12, words)) == ["one two\n", "three. four"]
    assert list(split_text(["one. two three"], 9, words)) == ["one. ", "two three"]
    assert list(split_text(["a bc defghij"], 6, words)) == ["a bc ", "defghij"[:6], "j"]
    assert list(split_text(["\n bcdefghij"], 6, words)) == ["\n bcde", "fghij"]


def test_a_text_is_read_as_it_comes() -> None:
    taken: list[int] = []

    def pieces() -> object:
        for number in range(10):
            taken.append(number)
            yield STORY

    chunks = split_text(pieces(), 30, offsets_of("llama"))
    next(chunks)
    assert taken == [0]
    assert len(list(chunks)) > 50 and taken == list(range(10))
