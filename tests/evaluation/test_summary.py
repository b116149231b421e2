"""Measures that compare answers question by question."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from latentwire.core.intervals import bootstrap_ci
from latentwire.evaluation.summary import gained, joint_measures, kept, mean_over_receivers, measure


@dataclass
class Scored:
    """An answer as the measures see it."""

    f1: float
    em: float = 0.0
    nll: float = 1.0
    tokens: int = 2
    prediction: str = ""
    first_correct: bool = False


def test_what_latents_keep_is_paired_with_the_text() -> None:
    """Half of each question's F1, easy or hard: the ratio is certain, though either mean is not."""
    text = [Scored(f1, 1.0, nll) for f1, nll in [(1.0, 0.5), (0.2, 3.0), (0.0, 4.0), (0.8, 1.0)] * 5]
    latent = [Scored(t.f1 / 2, 0.0, 2 * t.nll) for t in text]
    found = kept(latent, text, list(range(20)), 200)
    assert found["f1"] == pytest.approx(0.5) and found["f1_ci"] == pytest.approx([0.5, 0.5])
    assert found["nll_per_token"] == pytest.approx(2.0) and found["nll_per_token_ci"] == pytest.approx([2.0, 2.0])
    assert found["em"] == 0 and found["em_ci"] == [0, 0]
    nothing = kept(latent, [Scored(0.0)] * 20, list(range(20)), 200)
    assert nothing["f1"] is nothing["f1_ci"] is nothing["em"] is None and nothing["nll_per_token"] > 0


def test_a_gain_is_that_of_each_question() -> None:
    found = gained([0.6, 0.1, 0.4] * 10, [0.5, 0.0, 0.3] * 10, [i // 3 for i in range(30)], 200)
    assert found["f1"] == pytest.approx(0.1) and found["f1_ci"] == pytest.approx([0.1, 0.1])


def test_receivers_together_are_compared_with_the_better_one() -> None:
    own = {"a": ["red", "blue", "one", "up"], "b": ["red", "green", "two", "down"]}
    golds = [["red"], ["green"], ["one"], ["up"]]
    for receivers in (own, dict(reversed(own.items()))):
        found = joint_measures(["red", "green", "one", "up"], golds, receivers, [0, 1, 2, 3], 200)
        assert found["f1"] == 1.0 and found["gained"]["f1"] == pytest.approx(1 / 4)
        assert found["agreement"] == pytest.approx(1 / 4) and found["oracle_f1"] == found["oracle_em"] == 1.0


def test_receivers_agree_where_their_answers_are_alike_after_normalisation() -> None:
    own = {"a": ["The red lamp.", "one"], "b": ["red lamp", "two"]}
    found = joint_measures(["red lamp", "one"], [["lamp"], ["one"]], own, [0, 1], 50)
    assert found["agreement"] == 0.5


def test_intervals_draw_whole_passages() -> None:
    """Questions on one passage are not independent: each interval is that of the clusters it was given."""
    rng = random.Random(0)
    rows = [Scored(rng.random(), float(rng.random() < 0.5), rng.random(), rng.randint(1, 4)) for _ in range(24)]
    for row in rows:
        row.first_correct = rng.random() < 0.5
    other = [Scored(rng.random(), 1.0, rng.random()) for _ in rows]
    clusters = [i // 4 for i in range(24)]
    f1, em, nll, first = ([float(getattr(r, key)) for r in rows] for key in ("f1", "em", "nll", "first_correct"))
    found, share = measure(rows, clusters, 100), kept(rows, other, clusters, 100)

    def interval(values: list[float], weights: list[float] | None = None) -> list[float]:
        return list(bootstrap_ci(values, clusters, weights, resamples=100))

    assert [found[f"{key}_ci"] for key in ("f1", "em", "first_token_acc")] == [interval(v) for v in (f1, em, first)]
    assert found["nll_per_token_ci"] == interval(nll, [float(row.tokens) for row in rows])
    assert share["f1_ci"] == interval(f1, [row.f1 for row in other])
    assert gained(f1, [0.0] * 24, clusters, 100)["f1_ci"] == interval(f1)


def test_the_mean_over_receivers_is_that_of_each_question() -> None:
    answers = {"a": {"latent": [Scored(1.0, 1.0), Scored(0.0)]}, "b": {"latent": [Scored(0.5), Scored(0.5, 1.0)]}}
    for tuned in (True, False):
        own = {name: {"latent": measure(modes["latent"], [0, 1], 50)} for name, modes in answers.items()}
        own["a"]["latent"]["tuned"], own["b"]["latent"]["tuned"] = True, tuned
        found = mean_over_receivers(answers, own, "latent", [0, 1], 50)
        assert found is not None and found["f1"] == 0.5 and found["tuned"] is tuned
        assert found["f1_ci"] == list(bootstrap_ci([0.75, 0.25], [0, 1], resamples=50))
        assert found["em_ci"] == list(bootstrap_ci([0.5, 0.5], [0, 1], resamples=50))


def test_of_what_has_no_value_a_question_the_receivers_own_means_are_averaged() -> None:
    rows = {"a": [Scored(1.0, nll=2.0, first_correct=True)], "b": [Scored(1.0, nll=6.0)]}
    answers = {name: {"text": own} for name, own in rows.items()}
    own = {name: {"text": measure(one, [0], 50) | {"tuned": True}} for name, one in rows.items()}
    found = mean_over_receivers(answers, own, "text", [0], 50)
    assert found is not None and (found["first_token_acc"], found["nll_per_token"]) == (0.5, 2.0)
    assert found["latency_s"] is None
    own["a"]["text"]["latency_s"], own["b"]["text"]["latency_s"] = {"prefill": 1.0}, {"prefill": 4.0}
    found = mean_over_receivers(answers, own, "text", [0], 50)
    assert found is not None and found["latency_s"] == {"prefill": 2.5}


def test_the_mean_over_receivers_draws_whole_passages() -> None:
    rng = random.Random(0)
    rows = {name: [Scored(rng.random(), float(rng.random() < 0.5)) for _ in range(24)] for name in "ab"}
    answers, clusters = {name: {"latent": own} for name, own in rows.items()}, [i // 4 for i in range(24)]
    own = {name: {"latent": measure(one, clusters, 50) | {"tuned": True}} for name, one in rows.items()}
    found = mean_over_receivers(answers, own, "latent", clusters, 100)
    assert found is not None
    for key in ("f1", "em"):
        means = [(getattr(a, key) + getattr(b, key)) / 2 for a, b in zip(rows["a"], rows["b"], strict=True)]
        assert found[f"{key}_ci"] == pytest.approx(bootstrap_ci(means, clusters, resamples=100))
