"""An evaluation as a whole: held-out questions, measures, files, table; and whether a folder holds its results."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentwire.config import Config
from latentwire.config.load import same_config
from latentwire.config.sections.running import EvaluationConfig
from latentwire.core.json_files import mapping_at, read_json
from latentwire.data import data_fingerprint, load_passages
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


def known_results(
    path: Path, config: Config, receivers: Collection[str], checkpoint: Mapping[str, Any], passages: Sequence[Passage]
) -> dict[str, Any] | None:
    """The results in eval.json, where they are of these receivers, files and passages, and made with the same options.

    More rivals than the configuration names do no harm.
    """
    if not path.is_file():
        return None
    results: dict[str, Any] = read_json(path)
    manifest = mapping_at(results, "manifest")
    made = mapping_at(manifest, "config")
    same = same_config(made, config, ("evaluation.rivals",))
    same = same and set(config.evaluation.rivals) <= set(mapping_at(made, "evaluation").get("rivals", []))
    same = same and mapping_at(results, "receivers").keys() == set(receivers)
    same = same and manifest.get("checkpoint") == checkpoint and manifest.get("data") == data_fingerprint(passages)
    return results if same else None
