from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from latentwire.encoder.windows import align, divide, split, take_phases


def test_windows_and_phases_of_whole_and_short_windows() -> None:
    offsets = [(i, i + 1) for i in range(6)]
    cut = split(offsets, 4)
    assert cut.starts == (0, 4)
    assert cut.phase_tokens == [[0, 4], [1, 4], [2, 5], [3, 5]]


def test_windows_of_a_fraction_take_turns() -> None:
    offsets = [(i, i + 1) for i in range(20)]
    cut = split(offsets, 7.5)
    assert cut.starts == (0, 7, 15) and len(cut.phase_tokens) == 8
    assert [sorted(set(column)) for column in zip(*cut.phase_tokens, strict=True)] == [
        list(range(7)),
        list(range(7, 15)),
        list(range(15, 20)),
    ]
    assert len(split(offsets[:15], 7.5)) == 2 and len(split(offsets[:16], 7.5)) == 3


@given(st.integers(1, 300), st.integers(11, 160))
def test_windows_of_any_fraction_hold_every_token_once(tokens: int, tenths: int) -> None:
    cut = split([(i, i + 1) for i in range(tokens)], tenths / 10)
    assert len(cut) in (-(-tokens * 10 // tenths), -(-tokens * 10 // tenths) - 1)
    assert {index for phase in cut.phase_tokens for index in phase} == set(range(tokens))


def test_latent_len_fixes_the_number_of_latents() -> None:
    offsets = [(i, i + 1) for i in range(50)]
    cut = split(offsets, 4, latent_len=5)
    assert len(cut) == 5
    assert cut.starts == (0, 10, 20, 30, 40)
    assert [row[0] for row in cut.phase_tokens] == [0, 2, 5, 7]


def test_tokens_belong_to_the_window_of_their_centre() -> None:
    # The second token spans the border at 4 with its centre before it, the third lies behind it.
    assert align((0, 4), [(0, 2), (2, 5), (5, 8)], phases=2) == [[0, 2], [1, 2]]


def test_an_empty_window_repeats_the_token_before_it() -> None:
    assert align((0, 2, 4), [(0, 4), (4, 6)], phases=1) == [[0, 0, 1]]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 8), st.integers(1, 8))
def test_alignment_is_complete_and_in_order(widths: list[int], window: int, phases: int) -> None:
    edges = [sum(widths[:i]) for i in range(len(widths) + 1)]
    offsets = list(pairwise(edges))
    cut = split(offsets, window)
    table = align(cut.starts, offsets, phases)
    assert len(table) == phases and all(len(row) == len(cut) for row in table)
    assert all(row == sorted(row) for row in table)
    if phases == window:  # the sender's own tokens come back, every one of them
        assert table == cut.phase_tokens
        assert {t for row in table for t in row} == set(range(len(offsets)))


def test_phases_cover_a_window_evenly() -> None:
    assert [row[0] for row in take_phases([list(range(8))], 4)] == [0, 2, 4, 6]


def test_a_text_is_divided_into_exactly_as_many_windows() -> None:
    offsets = [(i, i + 1) for i in range(10)]
    cut = divide(offsets, 4, phases=2)
    assert cut.starts == (0, 2, 5, 7)
    assert cut.phase_tokens == [[0, 2, 5, 7], [1, 3, 6, 8]]
    short = divide(offsets[:2], 5, phases=2)  # more windows than tokens: some are empty
    assert len(short) == 5 and short.phase_tokens == [[0, 0, 0, 0, 1]] * 2
    assert len(divide([], 5, phases=2)) == 0
