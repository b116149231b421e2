from __future__ import annotations

import pytest

from latentwire.core.intervals import bootstrap_ci, estimate
from latentwire.core.measures import kept_in_words


def test_the_interval_holds_the_mean_and_is_wider_where_questions_share_a_passage() -> None:
    values = [float(i // 4 % 2) for i in range(80)]
    apart = bootstrap_ci(values, list(range(80)), resamples=500)
    shared = bootstrap_ci(values, [i // 4 for i in range(80)], resamples=500)
    assert apart[0] < 0.5 < apart[1]
    assert shared[1] - shared[0] > 1.5 * (apart[1] - apart[0])
    assert bootstrap_ci(values, list(range(80)), resamples=500) == apart


def test_the_mean_of_weighted_values_is_a_ratio_of_sums() -> None:
    tokens = [1.0, 2.0, 5.0, 3.0] * 10
    assert bootstrap_ci([0.5 * n for n in tokens], weights=tokens) == pytest.approx((0.5, 0.5))
    low, high = bootstrap_ci([1.0, 0.0, 0.0, 0.0] * 10, weights=tokens)
    assert low < 10 / 110 < high


def test_draws_without_weight_are_left_out() -> None:
    low, high = bootstrap_ci([1.0, 0.0, 0.0], weights=[2.0, 0.0, 0.0])  # some draws hold no text with an answer at all
    assert low == high == 0.5


def test_of_a_single_passage_questions_are_drawn() -> None:
    values = [0.0, 1.0, 0.0, 1.0, 1.0]
    assert bootstrap_ci(values, [7] * 5) == bootstrap_ci(values)
    assert bootstrap_ci(values, [7] * 5)[0] < 0.6 < bootstrap_ci(values, [7] * 5)[1]


def test_an_interval_reaches_to_its_mean_whatever_was_rounded() -> None:
    values, passages = [0.1, 0.2, 0.3] * 2, [0, 0, 0, 1, 1, 1]
    assert bootstrap_ci(values, passages)[0] > sum(values) / 6 - 1e-9  # alike: every draw is the mean, or nearly
    row = estimate("f1", values, passages)
    assert row["f1_ci"][0] <= row["f1"] <= row["f1_ci"][1] and row["f1"] == pytest.approx(0.2)
    assert estimate("r", [1.0, 2.0], weights=[2.0, 4.0]) == {"r": 0.5, "r_ci": [0.5, 0.5]}


def test_what_is_kept_is_said_with_its_intervals() -> None:
    kept = {"of": "text", "f1": 0.5, "f1_ci": [0.4, 0.61], "em": None, "em_ci": None}
    kept |= {"nll_per_token": 2.0, "nll_per_token_ci": [1.9, 2.125]}
    assert kept_in_words(kept) == "of text, latents keep 50% [40%, 61%] of F1, at 2.00 [1.90, 2.12] times its NLL"
    assert kept_in_words(kept | {"nll_per_token": None}) == "of text, latents keep 50% [40%, 61%] of F1"


def test_the_interval_is_that_of_95_percent() -> None:
    low, high = bootstrap_ci([float(i % 2) for i in range(400)])
    assert (high - low) / 2 == pytest.approx(1.96 * 0.5 / 20, rel=0.08)
