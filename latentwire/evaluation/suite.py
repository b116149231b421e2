"""Tasks of EleutherAI's harness, run by every receiver in every mode, their context passed as latents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable
from rich.table import Table

from latentwire.config import Config
from latentwire.config.load import same_config
from latentwire.core.atomic import make_folder
from latentwire.core.errors import ConfigError, DataError, LatentWireError, one_line
from latentwire.core.hashing import sha256_file
from latentwire.core.json_files import mapping_at, read_json, write_json, write_jsonl
from latentwire.core.manifest import run_manifest
from latentwire.evaluation.harness import CONTEXT_FIELDS, HARNESS_MODES, HarnessLM, Messages
from latentwire.evaluation.modes import modes_for
from latentwire.evaluation.table import wide_console
from latentwire.model.pretrained import load_checkpoint

SCHEMA = 1
FEWSHOT_SEED = 1234
"""The harness's own seed for the choice of worked examples; every mode gets the same ones."""
PLAIN = ("name", "alias", "sample_len", "sample_count")
"""What stands among a task's results and is no measure."""


@dataclass(frozen=True)
class Suite:
    """What is asked of the harness."""

    tasks: list[str]
    limit: int | None
    num_fewshot: int | None
    include_path: str | None
    data_path: str | None
    context_fields: list[str] | None


def run_suite(
    suite: Suite,
    folder: Path,
    config: Config,
    files: dict[str, Any],
    receivers: Sequence[str],
    out: Path,
    *,
    command: Sequence[str],
    fresh: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Run the tasks; writes lm_eval.json, and a file of answers for each receiver and mode into lm_eval/.

    Both are written after every mode. What lm_eval.json has already, made with the very same, is not measured again.
    """
    modes = [mode for mode in HARNESS_MODES if mode in config.evaluation.modes]
    if not modes:
        raise ConfigError(f"evaluation.modes: none of {', '.join(HARNESS_MODES)}, which the harness can measure")
    fields = tuple(suite.context_fields or CONTEXT_FIELDS)
    settings = asdict(suite) | {"context_fields": list(fields), "codec": config.evaluation.codec}
    settings |= {"lm_eval": lm_eval.__version__, "files": _files(suite)}
    manifest = run_manifest(config.model_dump(mode="json"), command) | {"checkpoint": files}
    manifest["versions"]["lm_eval"] = lm_eval.__version__
    results: dict[str, Any] = {"schema": SCHEMA, "suite": "lm-eval", "manifest": manifest, "settings": settings}
    path = out / "lm_eval.json"
    known = results["receivers"] = {} if fresh else measured_before(path, results, config)
    left = [name for name in receivers if not set(modes) <= set(known.get(name, {}))]
    if not left:
        if not quiet:
            print(f"{path} holds these results already; --fresh_eval evaluates again")
        return results

    metadata = {} if suite.data_path is None else {"data_path": suite.data_path}
    include = None if suite.include_path is None else Path(suite.include_path)
    tasks = load_tasks(suite.tasks, include, suite.num_fewshot, metadata)
    make_folder(out)
    system = load_checkpoint(folder, config, left)
    messages = Messages(system.sender)
    for name, receiver in system.receivers.items():
        own, possible = known.setdefault(name, {}), {mode.name for mode in modes_for(receiver)}
        for mode in (mode for mode in modes if mode not in own):
            own[mode] = None  # such as tuned text, where nothing was tuned on it
            if mode in possible:
                lm = HarnessLM(receiver, mode, messages, fields, batch_size=config.evaluation.batch_size, quiet=quiet)
                own[mode], samples = run_tasks(lm, tasks, suite.limit, config.evaluation.bootstrap)
                write_jsonl(out / "lm_eval" / f"{name}-{mode}.jsonl", sample_rows(samples))
            write_json(path, results)
    if not quiet:
        print_table(results)
        print(f"results: {path}")
    return results


def _files(suite: Suite) -> dict[str, str]:
    """Hashes of the files behind tasks of one's own: with others, results are others."""
    files = [Path(suite.data_path)] if suite.data_path else []
    if suite.include_path:
        files += [file for file in Path(suite.include_path).rglob("*") if file.suffix in (".yaml", ".yml", ".py")]
    return {str(file): sha256_file(file) for file in sorted(files) if file.is_file()}


def measured_before(path: Path, results: dict[str, Any], config: Config) -> dict[str, Any]:
    """What the file holds of receivers and modes that were measured with the same settings, checkpoint and versions."""
    there = read_json(path) if path.is_file() else {}
    if not isinstance(there, dict) or there.get("settings") != results["settings"]:
        return {}
    made, now = mapping_at(there, "manifest"), results["manifest"]
    if made.get("checkpoint") != now["checkpoint"] or made.get("versions") != now["versions"]:
        return {}
    if not same_config(mapping_at(made, "config"), config, ("evaluation.modes",)):
        return {}
    return mapping_at(there, "receivers")


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
