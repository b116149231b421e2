"""Table, history and plot of an ablation, from files alone."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentwire.core.errors import LatentWireError
from latentwire.core.intervals import bootstrap_ci
from latentwire.report.ablation import write_report
from latentwire.report.paired import _difference
from tests import ROOT
from tests.artifacts import measured, results


def write(path: Path, *values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four runs: finished, frozen (without a trained stage), failed and not begun."""
    runs = [
        {"name": "wide", "differs": {"encoder.d_z": 64}},
        {"name": "frozen", "differs": {}},
        {"name": "broken", "differs": {"lora.targets": ["x|y"]}},
        {"name": "later", "differs": {}},
    ]
    write(tmp_path / "ablation.json", {"name": "study", "runs": runs})
    write(tmp_path / "wide" / "eval.json", results(a={"latent": measured(0.4)}, b={"latent": measured(0.2)}))
    steps = [
        {"stage": "slot_tuning/a", "receiver": "a", "step": 1, "seconds": 90.0},
        {"stage": "end_to_end", "receiver": "a", "step": 1, "seconds": 3.0},
        {"stage": "end_to_end", "receiver": "b", "step": 2, "seconds": 7.0},
        {"stage": "end_to_end", "receiver": "a", "step": 3, "seconds": 1.0},
        {"stage": "end_to_end", "receiver": "a", "step": 5, "seconds": 2.0},
        {"stage": "end_to_end", "receiver": "a", "step": 7, "seconds": 99.0, "skipped": True},
    ]
    write(tmp_path / "wide" / "diagnostics.jsonl", *steps)
    with open(tmp_path / "wide" / "diagnostics.jsonl", "a") as file:
        file.write('{"stage": "end_to')  # a line that another process is about to finish
    groups = {"encoder": 1000, "generator/a": 20, "lora/a": 3, "generator/b": 50_000}
    write(tmp_path / "wide" / "stages" / "end_to_end" / "done" / "checkpoint.json", {"parameters": groups})
    write(tmp_path / "frozen" / "eval.json", results(a={"latent": measured(0.3)}))
    write(tmp_path / "frozen" / "diagnostics.jsonl", {"stage": "closed_form", "r2": {"a": 0.5}})
    write(tmp_path / "broken" / "failed.json", {"error": "lora.targets: no x|y in the model", "traceback": "..."})
    return tmp_path


def test_one_row_for_each_run_and_receiver(folder: Path) -> None:
    table = write_report(folder)
    assert table == json.loads((folder / "table.json").read_text())
    wide, frozen, broken, later = table["runs"]
    assert [run["status"] for run in table["runs"]] == ["done", "done", "failed", "unfinished"]
    a, b = wide["receivers"]["a"], wide["receivers"]["b"]
    assert (a["f1"], a["em"], a["wire_bytes"], a["compression"]) == (0.4, 0.2, 900.0, 2.5)
    assert (a["step_s"], b["step_s"]) == (2.0, 7.0)
    assert (a["trained_parameters"], b["trained_parameters"]) == (1023, 51_000)
    assert (frozen["receivers"]["a"]["step_s"], frozen["receivers"]["a"]["trained_parameters"]) == (None, None)
    assert broken["error"] == "lora.targets: no x|y in the model" and later["receivers"] == {}

    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [(r["run"], r["receiver"], r["status"]) for r in rows] == [
        ("wide", "a", "done"),
        ("wide", "b", "done"),
        ("frozen", "a", "done"),
        ("broken", "", "failed"),
        ("later", "", "unfinished"),
    ]
    assert float(rows[0]["f1_low"]) == pytest.approx(0.35) and rows[1]["trained_parameters"] == "51000"
    assert json.loads(rows[0]["differs"]) == {"encoder.d_z": 64}


def test_a_run_that_was_evaluated_again_without_latents_is_unfinished(folder: Path) -> None:
    write(folder / "frozen" / "eval.json", results(a={"latent": None}))
    assert [run["status"] for run in write_report(folder)["runs"]] == ["done", "unfinished", "failed", "unfinished"]


def test_the_table_for_readers(folder: Path) -> None:
    write_report(folder)
    text = (folder / "table.md").read_text()
    assert "12 held-out questions (facts)" in text and "commit 0123456, a processor" in text
    assert "| wide | a | 0.400 [0.350, 0.450] | 0.200 | 1.600 | 0.133 | 2.50x | 900 | 1,023 | 2.00 |" in text
    assert "failed: lora.targets: no x/y in the model" in text and "- wide: `encoder.d_z` = `64`" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {table[0].count("|")}


def test_the_history_names_the_run_of_every_line(folder: Path) -> None:
    write_report(folder)
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [(r["run"], r["stage"]) for r in rows] == [
        ("wide", "slot_tuning/a"),
        *[("wide", "end_to_end")] * 5,
        ("frozen", "closed_form"),
    ]


def test_steps_that_a_resumed_run_did_again_count_once(folder: Path) -> None:
    log = folder / "wide" / "diagnostics.jsonl"
    steps = [{"stage": "end_to_end", "receiver": "a", "step": n, "seconds": 2.0 * n} for n in (1, 3, 5, 3, 5, 7)]
    write(log, *steps)
    table = write_report(folder)
    assert table["runs"][0]["receivers"]["a"]["step_s"] == 8.0  # of 2, 6, 10 and 14
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["run"] == "wide"] == [1, 3, 5, 7]
    write(log, *steps[:3], *(steps[1] | {"receiver": "b", "step": n} for n in (6, 4)))  # receivers take turns
    write_report(folder)
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["run"] == "wide"] == [1, 3, 4]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"stage": "end_to_end", "step": "4"}, "a line of end_to_end whose step is no number: '4'"),
        ({"stage": ["end_to_end"], "step": 4}, r"a line whose stage is no text: \['end_to_end'\]"),
        ({"step": 4}, "a line whose stage is no text: None"),
    ],
)
def test_a_line_that_no_run_writes_is_named_with_its_log(folder: Path, line: dict[str, Any], said: str) -> None:
    log = folder / "wide" / "diagnostics.jsonl"
    write(log, {"stage": "end_to_end", "step": 3}, line, {"stage": "end_to_end", "step": 5})
    with pytest.raises(LatentWireError, match=f"diagnostics.jsonl: {said}"):
        write_report(folder)


def test_the_plot_is_a_picture_and_is_left_out_where_nothing_is_done(folder: Path, tmp_path: Path) -> None:
    write_report(folder)
    first = (folder / "plot.png").read_bytes()
    assert first.startswith(b"\x89PNG") and int.from_bytes(first[16:20], "big") > 500
    write(folder / "frozen" / "eval.json", results(a={"latent": measured(0.9)}))
    write_report(folder)
    assert (folder / "plot.png").read_bytes() != first
    empty = tmp_path / "empty"
    write(empty / "ablation.json", {"name": "empty", "runs": [{"name": "x", "differs": {}}]})
    write_report(empty)
    assert not (empty / "plot.png").exists() and "unfinished" in (empty / "table.md").read_text()


def test_answers_are_compared_pair_by_pair(folder: Path) -> None:
    def answers(f1: list[float], nll: list[float]) -> list[dict[str, Any]]:
        return [
            {
                "id": str(i),
                "question": "?",
                "passage": i // 2,
                "a": {"latent": {"f1": f, "nll": n, "tokens": 1 + i % 2}},
            }
            for i, (f, n) in enumerate(zip(f1, nll, strict=True))
        ]

    runs = [{"name": "wide", "differs": {}, "against": "frozen"}, {"name": "frozen", "differs": {}, "against": None}]
    write(folder / "ablation.json", {"name": "study", "runs": runs})
    hard = [0.0, 0.9, 0.1, 0.5]
    write(folder / "frozen" / "predictions.jsonl", *answers(hard, [9.0, 1.0, 3.0, 5.0]))
    assert write_report(folder)["runs"][0]["receivers"]["a"]["difference"] is None  # the other has no answers yet
    better = answers([f + 0.1 for f in hard], [8.7, 0.4, 2.7, 4.4])
    write(folder / "wide" / "predictions.jsonl", *better)
    wide, frozen = write_report(folder)["runs"]
    # The same gain everywhere: however much questions differ, the pairs do not. 0.3 nats a token.
    assert wide["receivers"]["a"]["difference"] == {
        "f1": pytest.approx(0.1),
        "f1_ci": pytest.approx([0.1, 0.1]),
        "nll_per_token": pytest.approx(-0.3),
        "nll_per_token_ci": pytest.approx([-0.3, -0.3]),
    }
    assert wide["receivers"]["b"]["difference"] is frozen["receivers"]["a"]["difference"] is None
    assert "| +0.100 [+0.100, +0.100] | -0.300 [-0.300, -0.300] |" in (folder / "table.md").read_text()
    row = next(csv.DictReader((folder / "table.csv").open()))
    assert float(row["nll_apart_high"]) == pytest.approx(-0.3) and float(row["f1_apart"]) == pytest.approx(0.1)
    older, diverged, shorter, without = (answers([0.0] * 4, [0.0] * 4) for _ in range(4))
    del older[0]["a"]["latent"]["nll"]
    diverged[0]["a"]["latent"]["nll"] = None  # NaN
    shorter[0]["a"]["latent"]["tokens"] += 1  # of another tokenizer
    del without[0]["a"]["latent"]
    results = folder / "wide" / "eval.json"
    made = json.loads(results.read_text())
    for data, found in (("1", True), ("2", False)):
        for run in ("frozen", "wide"):
            file = folder / run / "eval.json"
            was = json.loads(file.read_text())
            file.write_text(json.dumps(was | {"manifest": was["manifest"] | {"data": data if run == "wide" else "1"}}))
        assert (write_report(folder)["runs"][0]["receivers"]["a"]["difference"] is not None) == found
    results.write_text(json.dumps(made))
    for other in (better[:-1], [row | {"question": "another"} for row in better], older, diverged, shorter, without):
        write(folder / "wide" / "predictions.jsonl", *other)
        assert write_report(folder)["runs"][0]["receivers"]["a"]["difference"] is None


def test_no_torch_is_needed(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from latentwire.report.ablation import write_report; "
        f"write_report(Path({str(folder)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_an_interval_of_differences_draws_whole_passages() -> None:
    f1, nll = [0.5, 0.1, -0.3, 0.0, 0.2, 0.9], [1.0, -2.0, 3.0, 0.5, -1.0, 2.0]
    tokens, passages = [1, 4, 2, 3, 1, 2], [0, 0, 1, 1, 2, 2]
    pairs = [
        ({"f1": a, "nll": b, "tokens": n}, {"f1": 0.0, "nll": 0.0}) for a, b, n in zip(f1, nll, tokens, strict=True)
    ]
    found = _difference(pairs, passages)
    assert found["f1_ci"] == list(bootstrap_ci(f1, passages))
    assert found["nll_per_token_ci"] == list(bootstrap_ci(nll, passages, tokens))


def test_steps_are_those_of_the_receiver_with_the_whole_name(folder: Path) -> None:
    before = write_report(folder)["runs"][0]["receivers"]["a"]["step_s"]
    row = {"stage": "end_to_end", "step": 9, "receiver": "ab", "seconds": 99.0}
    log = folder / "wide" / "diagnostics.jsonl"
    log.write_text(f"{json.dumps(row)}\n" * 9 + log.read_text())
    assert write_report(folder)["runs"][0]["receivers"]["a"]["step_s"] == before
