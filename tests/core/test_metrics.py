from __future__ import annotations

import pytest
from torchmetrics.functional.text import squad

from latentwire.core.metrics import exact_match, f1_score

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
