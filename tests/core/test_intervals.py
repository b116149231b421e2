from __future__ import annotations

import pytest

from latentwire.core.intervals import bootstrap_ci


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
