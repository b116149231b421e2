"""Evaluation as the commands run it: held-out questions, files, table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentwire.config import Config
from latentwire.data import load_passages
from latentwire.evaluation.evaluate import evaluate, print_table, write_results
from latentwire.model.system import LatentWire


def evaluate_system(
    system: LatentWire,
    config: Config,
    folder: Path,
    *,
    command: Sequence[str] = (),
    checkpoint: dict[str, Any] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluate on the held-out split, write the results to a folder (see `write_results`), print the table."""
    passages = load_passages(config.data, "validation", config.evaluation.samples or None)
    results, answers = evaluate(system, passages, config, command=command, quiet=quiet)
    results["manifest"]["checkpoint"] = checkpoint  # its files with their hashes, where it was read from files
    write_results(folder, results, answers)
    if not quiet:
        print_table(results)
        print(f"results: {folder / 'eval.json'}")
    return results
