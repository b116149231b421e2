from __future__ import annotations

import pytest

from latentwire.report.plots import around


def test_an_interval_reaches_to_its_mean_whatever_was_rounded() -> None:
    off = {"f1": 0.2, "f1_ci": [0.2 + 1e-16, 0.25]}  # as a file of another hand may have it
    below, above = around([off, {"f1": 0.5, "f1_ci": [0.4, 0.75]}], "f1")
    assert below == [0.0, pytest.approx(0.1)] and above == pytest.approx([0.05, 0.25])
