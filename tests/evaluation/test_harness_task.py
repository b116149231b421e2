"""The task that examples/lm_eval ships, without the harness itself."""

from __future__ import annotations

from examples.lm_eval.squad import questions, scores


def test_the_shipped_task_has_its_documents_and_scores_them_as_eval_does() -> None:
    rows = questions()["validation"]
    assert len(rows) == 100 and all(row["context"] and row["answers"] for row in rows)
    right = scores(rows[0], [f" {rows[0]['answers'][0]}"])
    assert set(right.values()) == {1.0} and set(scores(rows[0], [" nothing of it"]).values()) == {0.0}
