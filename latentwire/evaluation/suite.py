"""Tasks of EleutherAI's harness: loaded once, run by every receiver in every mode, shown in one table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
from rich.table import Table

from latentwire.core.errors import ConfigError, DataError, LatentWireError, one_line
from latentwire.evaluation.harness import HARNESS_MODES, HarnessLM
from latentwire.evaluation.table import wide_console

FEWSHOT_SEED = 1234
"""The harness's own seed for the choice of worked examples; every mode gets the same ones."""
PLAIN = ("name", "alias", "sample_len", "sample_count")
"""What stands among a task's results and is no measure."""


def load_tasks(
    names: Sequence[str],
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Tasks, groups and tags by name, with their data: what the harness's `evaluate` takes.

    include_path: a folder of more tasks. num_fewshot: worked examples in place of what a task says, unless it says 0.
    metadata: handed to tasks that make their data set themselves. DataError where one is unknown, cannot be loaded or
    has no context by its nature.
    """
    if include_path is not None and not include_path.is_dir():
        raise ConfigError(f"--include_path: {include_path}: no such folder")
    manager = _manager(names, include_path, dict(metadata or {}))
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise DataError(f"--tasks: {unknown[0]!r} is neither a task of the harness nor one of --include_path")
    try:
        loaded: dict[str, Any] = manager.load(list(names))
    except LatentWireError:
        raise
    except Exception as error:  # a task is code and data of others, and may fail in any way
        raise DataError(f"--tasks: {','.join(names)}: {type(error).__name__}: {one_line(error)}") from error
    for name, task in loaded["tasks"].items():
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise DataError(f"--tasks: {name} scores whole texts, so there is no context to send")
        if num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return loaded


def _manager(names: Sequence[str], include_path: Path | None, metadata: dict[str, Any]) -> TaskManager:
    """An index of tasks. To read the harness's own ones takes seconds, so it is only done where they are needed."""
    if include_path is not None:
        own = TaskManager(include_path=str(include_path), include_defaults=False, metadata=metadata)
        if all(name in own.all_subtasks for name in names):
            return own
    return TaskManager(include_path=include_path and str(include_path), metadata=metadata)


def run_tasks(lm: HarnessLM, tasks: dict[str, Any], limit: int | None, resamples: int) -> tuple[dict[str, Any], Any]:
    """All tasks with one model: the harness's own results with what the requests cost, and its samples by task.

    limit: documents of each task. resamples: for standard errors of measures that are no means.
    """
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(FEWSHOT_SEED)
    found = evaluate(lm=lm, task_dict=tasks, limit=limit, bootstrap_iters=resamples)
    results = json.loads(json.dumps(found, default=handle_non_serializable))
    samples = results.pop("samples")
    return results | {"requests": lm.cost()}, samples


def sample_rows(samples: Mapping[str, Sequence[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """One row a document, without document and prompt, of which the harness gives the hashes."""
    for task, rows in samples.items():
        for row in rows:
            yield {"task": task, **{key: value for key, value in row.items() if key not in ("doc", "arguments")}}


def print_table(results: dict[str, Any]) -> None:
    """One table of all receivers, tasks and measures, a column a mode; below it what the messages cost."""
    console = wide_console()
    measured = {name: {m: own[m] for m in own if own[m] is not None} for name, own in results["receivers"].items()}
    modes = [mode for mode in HARNESS_MODES if any(mode in own for own in measured.values())]
    table = Table(title=f"lm-eval {results['settings']['lm_eval']}, codec {results['settings']['codec']}")
    for column in ("receiver", "task", "measure", *modes):
        table.add_column(column, justify="right" if column in modes else "left", no_wrap=True)
    for name, own in measured.items():
        for task, measures in next(iter(own.values()), {"results": {}})["results"].items():
            for key in (key for key in measures if key not in PLAIN and "_stderr" not in key):
                cells = [_cell(own[mode]["results"][task], key) if mode in own else "" for mode in modes]
                table.add_row(name, task, key.removesuffix(",none"), *cells)
        table.add_section()
    console.print(table)
    for name, own in measured.items():
        for task, cost in own.get("latent", {}).get("requests", {}).items():
            console.print(f"{name}, {task}: {_sentence(cost)}", soft_wrap=True)


def _cell(measures: Mapping[str, Any], key: str) -> str:
    value, (name, _, kind) = measures[key], key.partition(",")
    error = measures.get(f"{name}_stderr,{kind}")
    if not isinstance(value, float | int):
        return str(value)
    return f"{value:.3f}" + (f" ± {error:.3f}" if isinstance(error, float) else "")


def _sentence(cost: Mapping[str, Any]) -> str:
    said = f"{cost['compressed']} of {cost['requests']} requests had their passage sent"
    if cost["compressed"]:
        said += f", {cost['compression']:.2f}x fewer positions; wire {cost['bytes']['wire']:.0f} bytes, "
        said += f"the passages {cost['bytes']['utf8']:.0f}"
    if cost["cut"]:
        said += f"; {cost['cut']} lost their beginning"
    return said
