"""Data sets through the `datasets` library, from its cache or the Hub."""

from __future__ import annotations

from typing import Any

from latentwire.config.sections.inputs import DataConfig
from latentwire.core.errors import DataError, one_line
from latentwire.data.example import Passage, Question
from latentwire.data.hotpot import parse_hotpot
from latentwire.data.squad import answers_of

SOURCES = {
    "squad": ("rajpurkar/squad", None),
    "squad_v2": ("rajpurkar/squad_v2", None),
    "hotpot": ("hotpotqa/hotpot_qa", "distractor"),
}


def load_from_hub(config: DataConfig, split: str, key: str) -> list[Passage]:
    """The train or validation split; DataError, in one line, where it cannot be had."""
    import datasets

    path, name = SOURCES[config.dataset]
    try:
        rows = datasets.load_dataset(path, name, split=split)
    except Exception as error:
        # The library raises many kinds of errors for one cause: the set is neither cached nor reachable.
        why = one_line(error, 120)
        raise DataError(
            f"{key}: {path} could not be loaded by the datasets library ({why}); give a local file in the original "
            f"JSON format as {key}"
        ) from error
    return rows_to_passages(config.dataset, rows, config.hotpot_context)


def rows_to_passages(dataset: str, rows: Any, context: str = "supporting") -> list[Passage]:
    """Rows as the Hub holds them, questions on the same context gathered; `context` is that of `parse_hotpot`."""
    if dataset == "hotpot":
        return parse_hotpot(
            [
                {
                    "_id": row["id"],
                    "question": row["question"],
                    "answer": row["answer"],
                    "supporting_facts": [(title, 0) for title in row["supporting_facts"]["title"]],
                    "context": list(zip(row["context"]["title"], row["context"]["sentences"], strict=True)),
                }
                for row in rows
            ],
            context,
        )
    gathered: dict[str, list[Question]] = {}
    for row in rows:
        if answers := answers_of(row["answers"]["text"], version2=dataset == "squad_v2"):
            question = Question(row["id"], row["question"].strip(), answers)
            gathered.setdefault(row["context"].strip(), []).append(question)
    return [Passage(str(n), context, tuple(qs)) for n, (context, qs) in enumerate(gathered.items())]
