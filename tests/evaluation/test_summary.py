"""Measures that compare answers question by question."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from latentwire.evaluation.summary import gained, joint_measures, kept


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
    own = {"a": ["red", "blue", "one"], "b": ["red", "green", "two"]}
    found = joint_measures(["red", "green", "one"], [["red"], ["green"], ["one"]], own, [0, 1, 2], 200)
    assert found["f1"] == 1.0 and found["gained"]["f1"] == pytest.approx(1 / 3)
    assert found["agreement"] == pytest.approx(1 / 3) and found["oracle_f1"] == 1.0
