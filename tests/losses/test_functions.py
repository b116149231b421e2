"""Each loss function against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from latentwire.losses.alignment import answer_alignment
from latentwire.losses.distillation import logit_kd, state_kd
from latentwire.losses.first_token import prediction_entropy
from latentwire.losses.manifold import group_mean, rms_deviation, scale_deviation, statistics_distance
from latentwire.losses.schedule import interpolate, tokens_at
from latentwire.losses.terms import Terms


def test_entropy_of_an_even_and_of_a_sure_prediction() -> None:
    even, sure = torch.zeros(2, 8), torch.tensor([[50.0, 0.0, 0.0]])
    assert float(prediction_entropy(even)) == pytest.approx(math.log(8))
    assert float(prediction_entropy(sure)) == pytest.approx(0.0, abs=1e-6)


def test_kd_is_the_divergence_from_the_teacher_at_a_temperature() -> None:
    teacher = torch.tensor([[math.log(0.9), math.log(0.1)], [0.0, 0.0]])
    student = torch.tensor([[math.log(0.5), math.log(0.5)], [0.0, 0.0]])
    expected = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert float(logit_kd(student, teacher)) == pytest.approx(expected / 2)
    assert float(logit_kd(teacher, teacher, 3.0)) == pytest.approx(0.0, abs=1e-7)
    # At temperature 2 the teacher's odds of 9 to 1 become 3 to 1.
    warm = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(logit_kd(student, teacher, 2.0)) == pytest.approx(4 * warm / 2)


def test_hidden_states_are_compared_layer_by_layer() -> None:
    a, b = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0, 3.0], [0.0, 4.0]])
    assert float(state_kd([a], [a])) == 0.0 == float(state_kd([a], [a], "cosine"))
    assert float(state_kd([2 * a], [a])) == pytest.approx(1.0)
    assert float(state_kd([2 * a], [a], "cosine")) == pytest.approx(0.0)
    assert float(state_kd([a, a], [b, a], "cosine")) == pytest.approx(0.25)  # one row of one layer at a right angle
    assert float(state_kd([a, 2 * a], [a, a])) == pytest.approx(0.5)


def test_alignment_looks_for_the_closest_real_position_in_each_head() -> None:
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    parts = torch.stack([torch.stack([x, y]), torch.stack([y, y])])[None]  # 2 positions with 2 heads
    answers = torch.stack([torch.stack([y, y]), torch.stack([x, x])])[None] * 7.0
    mask, asked = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    assert float(answer_alignment(parts, mask, answers, asked)) == pytest.approx(0.0)  # the second position is it
    assert float(answer_alignment(parts, mask, answers, ~asked)) == pytest.approx(0.5)  # x is in the first head only
    alone = torch.tensor([[True, False]])
    assert float(answer_alignment(parts, alone, answers, asked)) == pytest.approx(0.5)
    assert float(answer_alignment(-parts, ~alone, answers, asked)) == pytest.approx(2.0)  # as far as can be


def test_statistics_are_compared_in_units_of_the_known_ones() -> None:
    vectors = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 4.0], [-1.0, 4.0]])  # means 0 and 2, deviations 1 and 2
    mean, std, each = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 2.0]), torch.tensor([0, 1])
    assert float(statistics_distance(vectors, mean, std, each)) == pytest.approx(0.0, abs=1e-6)
    assert float(statistics_distance(vectors + std * 3, mean, std, each)) == pytest.approx(9.0)
    assert float(statistics_distance(vectors, mean, std / 2, each)) == pytest.approx(1.0)
    shared = torch.full((2,), math.sqrt(2.5))  # of one group, whose mean variance is (1 + 4) / 2
    assert float(statistics_distance(vectors, mean, shared, torch.zeros(2, dtype=torch.long))) == pytest.approx(
        0.0, abs=1e-6
    )


def test_sizes_are_compared_group_by_group() -> None:
    groups = torch.tensor([0, 0, 1])
    assert group_mean(torch.tensor([[1.0, 3.0, 5.0]]), groups).tolist() == [[2.0, 5.0]]
    vectors = torch.tensor([[3.0, 3.0, 1.0]])
    assert float(rms_deviation(vectors, torch.tensor([9.0, 9.0, 1.0]), groups)) == pytest.approx(0.0, abs=1e-6)
    assert float(rms_deviation(vectors, torch.tensor([1.0, 1.0, 1.0]), groups)) == pytest.approx(2.0)  # (2² + 0²) / 2
    assert float(scale_deviation(torch.tensor([[2.0, 1.0], [-2.0, -1.0]]))) == pytest.approx(0.5)


def test_a_dead_dimension_gives_no_bad_gradient() -> None:
    latents = torch.zeros(3, 2, requires_grad=True)
    scale_deviation(latents).backward()
    assert torch.isfinite(latents.grad).all()  # type: ignore[arg-type]


def test_schedules() -> None:
    assert [interpolate(1.0, 0.0, p) for p in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]
    assert [interpolate(2.0, 0.0, p, "cosine") for p in (0.0, 0.5, 1.0)] == pytest.approx([2.0, 1.0, 0.0])
    assert interpolate(1.0, 0.0, 0.1, "cosine") > interpolate(1.0, 0.0, 0.1)
    assert interpolate(0.3, None, 0.9) == 0.3
    assert [tokens_at(1, 3, i / 9) for i in range(10)] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert [tokens_at(3, 1, p) for p in (0.0, 0.5, 1.0)] == [3, 2, 1] and tokens_at(5, None, 1.0) == 5


def test_terms_sum_up_with_their_weights() -> None:
    terms, more = Terms(), Terms()
    terms.add("a", torch.tensor(2.0))
    more.add("b", torch.tensor(3.0), -0.5)
    terms.extend(more)
    assert float(terms.total) == 0.5 and terms.metrics == {"a": 2.0, "b": 3.0}
    assert {name: float(term) for name, term in terms.weighted.items()} == {"a": 2.0, "b": -1.5}
