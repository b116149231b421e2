from __future__ import annotations

import pytest
from torchmetrics.functional.text import squad

from latentwire.evaluation.metrics import bootstrap_ci, exact_match, f1_score

CASES = [
    ("the red Lamp", ["red lamp"]),
    ("a  lamp, red!", ["The red lamp"]),
    ("red red lamp", ["red lamp lamp"]),
    ("in 1432", ["1432", "the year 1432"]),
    ("", ["lamp"]),
    ("the", ["lamp"]),
    ("Talden", ["Orlin", "Talden town"]),
    ("naïve café", ["naïve café."]),
]


@pytest.mark.parametrize(("prediction", "golds"), CASES)
def test_f1_and_em_are_those_of_torchmetrics(prediction: str, golds: list[str]) -> None:
    official = squad(
        {"prediction_text": prediction, "id": "1"},
        {"answers": {"text": golds, "answer_start": [0] * len(golds)}, "id": "1"},
    )
    assert f1_score(prediction, golds) == pytest.approx(float(official["f1"]) / 100, abs=1e-6)
    assert exact_match(prediction, golds) == pytest.approx(float(official["exact_match"]) / 100)


def test_the_interval_holds_the_mean_and_is_wider_where_questions_share_a_passage() -> None:
    values = [float(i // 4 % 2) for i in range(80)]
    apart = bootstrap_ci(values, list(range(80)), resamples=500)
    shared = bootstrap_ci(values, [i // 4 for i in range(80)], resamples=500)
    assert apart[0] < 0.5 < apart[1]
    assert shared[1] - shared[0] > 1.5 * (apart[1] - apart[0])
    assert bootstrap_ci(values, list(range(80)), resamples=500) == apart
