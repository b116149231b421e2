"""`latentwire ablate`: many runs that differ in a few keys, in one table."""

from __future__ import annotations

import gc
import json
import os
import re
import traceback
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer

from latentwire.cli.options import Debug, output_folder
from latentwire.cli.run import invoke, run_and_exit
from latentwire.config.ablation import Plan, PlannedRun, load_ablation
from latentwire.config.load import json_or_text, parse_override, parse_overrides
from latentwire.core.errors import ConfigError, Interrupted, LatentWireError, TrainingError, named, one_line
from latentwire.core.json_files import write_json
from latentwire.core.names import FAILED
from latentwire.report.ablation import PLAN, as_markdown, is_evaluated, write_report
from latentwire.training.requirements import check_requirements


def command(
    config_path: Annotated[str, typer.Option("--config", metavar="FILE", help="JSON file of the ablation.")],
    out_dir: Annotated[
        str | None, output_folder("Folder of all its runs; default: <checkpoint.runs_dir>/<file's name>.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--override", metavar="KEY=VALUE", help="Change one key in every run.")
    ] = None,
    sweeps: Annotated[
        list[str] | None,
        typer.Option("--sweep", metavar="KEY=A,B", help="Sweep over one more key, or other values."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only runs of this name; may hold * and ?.")
    ] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only the I-th of N parts of the runs, for job arrays.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and stop.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove what earlier runs left in the chosen runs' folders.")
    ] = False,
    debug: Debug = False,
) -> dict[str, Any]:
    """Train and evaluate every run of an ablation, then compare them in a table and a plot.

    The same command again goes on where it was cut off; finished runs are left alone. A run that fails is noted, the
    others go on, and the command ends with status 2.

    Example: latentwire ablate --config configs/ablation/sample_ablation.json
    """
    if "LOCAL_RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        # A run that fails in one process is left behind, and the others would wait for that one.
        raise ConfigError("accelerate launch: an ablation is one process; share its runs out with --shard I/N")
    plan = load_ablation(Path(config_path), dict(map(parse_sweep, sweeps or ())), parse_overrides(overrides))
    folder = Path(out_dir) if out_dir else Path(plan.runs[0].config.checkpoint.runs_dir) / plan.name
    chosen = choose(plan.runs, only or (), shard)
    for run in plan.runs:
        with named(f"{config_path}: run {run.name!r}"):
            check_requirements(run.config)
    if dry_run:
        for run in chosen:
            changes = " ".join(f"{key}={json.dumps(value)}" for key, value in run.changes.items())
            print(f"{run.name}: {changes}{' (done)' if is_done(folder / run.name, run) else ''}")
        return {"folder": str(folder), "runs": [run.name for run in chosen]}
    runs = [
        {"name": r.name, "differs": r.differs, "against": r.against, "config": r.config.model_dump(mode="json")}
        for r in plan.runs
    ]
    write_json(folder / PLAN, {"name": plan.name, "runs": runs})
    failed = {}
    for number, run in enumerate(chosen, 1):
        print(f"\n== {run.name} ({number} of {len(chosen)}) ==", flush=True)
        if is_done(folder / run.name, run) and not fresh:
            print("done before", flush=True)
        elif (error := train(plan, run, folder / run.name, fresh, debug)) is not None:
            failed[run.name] = error
            print(f"failed: {error}", flush=True)
        write_report(folder)
    table = write_report(folder)
    print(f"\n{as_markdown(table)}\nwritten: {folder / 'table.md'}, table.csv, table.json, plot.png, history.jsonl")
    if failed:
        name, error = next(iter(failed.items()))
        raise TrainingError(f"{len(failed)} of {len(chosen)} runs failed; {name}: {error}")
    return table


def parse_sweep(text: str) -> tuple[str, list[Any]]:
    """The key and the values of "key=a,b" or of "key=[a, b]", where a and b are JSON or else plain text."""
    key, value = parse_override(text)
    if isinstance(value, str):
        value = [json_or_text(part) for part in value.split(",") if part.strip()]
    if value == []:
        raise ConfigError(f"--sweep {text}: expected one value or more, such as {key}=1,2")
    return key, value if isinstance(value, list) else [value]


def choose(runs: Sequence[PlannedRun], only: Sequence[str], shard: str | None) -> list[PlannedRun]:
    """The runs that are asked for: those of some names, and of these one part of N."""
    for pattern in only:
        if not any(fnmatch(run.name, pattern) for run in runs):
            raise ConfigError(f"--only {pattern}: no such run (there are: {', '.join(run.name for run in runs)})")
    chosen = [run for run in runs if not only or any(fnmatch(run.name, pattern) for pattern in only)]
    if shard is None:
        return chosen
    parts = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not parts or not 1 <= int(parts[1]) <= int(parts[2]):
        raise ConfigError(f"--shard {shard}: expected I/N with I from 1 to N, such as 2/4")
    return chosen[int(parts[1]) - 1 :: int(parts[2])]


def is_done(folder: Path, run: PlannedRun) -> bool:
    """Whether a run's folder holds the evaluation of this very configuration."""
    try:
        return not (folder / FAILED).exists() and is_evaluated(folder, run.config.model_dump(mode="json"))
    except LatentWireError:  # a damaged file is written anew
        return False


def train(plan: Plan, run: PlannedRun, folder: Path, fresh: bool, debug: bool) -> str | None:
    """Train and evaluate one run in its folder; returns the error, which is also left in failed.json, if it fails."""
    from latentwire.cli.train import main as train_main

    words = ["--config", str(plan.base)] if plan.base else []
    words += [word for key, value in run.changes.items() for word in ("--override", f"{key}={json.dumps(value)}")]
    words += ["--out_dir", str(folder), *(["--fresh"] if fresh else [])]
    try:
        train_main(words)
    except Interrupted:
        raise
    except Exception as error:  # whatever it is, it is this run's alone
        if debug:
            traceback.print_exc()
        said = one_line(error, None)
        write_json(folder / FAILED, {"error": said, "kind": type(error).__name__, "traceback": traceback.format_exc()})
        return said
    finally:
        gc.collect()  # the models of this run must not wait for those of the next
    (folder / FAILED).unlink(missing_ok=True)
    return None


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Run an ablation; returns what table.json holds. Raises LatentWireError where a run failed."""
    table: dict[str, Any] = invoke("ablate", args)
    return table


if __name__ == "__main__":
    run_and_exit(main)
