"""Evaluation as the commands run it: held-out questions, files, table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentwire.config import Config
from latentwire.config.sections.running import EvaluationConfig
from latentwire.data import load_passages
from latentwire.data.example import Passage
from latentwire.evaluation.evaluate import evaluate
from latentwire.evaluation.files import write_results
from latentwire.evaluation.table import print_table
from latentwire.model.system import LatentWire


def held_out(config: Config) -> list[Passage]:
    """The passages to evaluate on: of the held-out split, with evaluation.samples questions.

    A run that left evaluation out (samples 0) says nothing of how many; then it is the schema's number.
    """
    return load_passages(config.data, "validation", config.evaluation.samples or EvaluationConfig().samples)


def evaluate_system(
    system: LatentWire,
    config: Config,
    folder: Path,
    *,
    command: Sequence[str] = (),
    checkpoint: dict[str, Any] | None = None,
    quiet: bool = False,
    passages: Sequence[Passage] | None = None,
) -> dict[str, Any]:
    """Evaluate on the held-out split, write the results to a folder (see `write_results`), print the table.

    passages: the held-out split, where it is loaded already.
    """
    results, answers = evaluate(system, passages or held_out(config), config, command=command, quiet=quiet)
    results["manifest"]["checkpoint"] = checkpoint  # its files with their hashes, where it was read from files
    write_results(folder, results, answers)
    if not quiet:
        print_table(results)
        print(f"results: {folder / 'eval.json'}")
    return results
