"""`latentwire train`: run all training stages, then evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from latentwire.cli.options import ConfigFile, Overrides, names_of, output_folder
from latentwire.cli.run import command_line, invoke, run_and_exit
from latentwire.config import Config, load_config
from latentwire.config.flags import schema_options
from latentwire.config.form import run_id
from latentwire.config.sections.training import STAGES
from latentwire.core.errors import ConfigError
from latentwire.core.json_files import dump_json
from latentwire.core.names import INDEX

DEBUG = {"diagnostics.log_every": 1, "diagnostics.profile_memory": True, "diagnostics.log_shapes": True}


def run_name(config_path: str | None, tag: str | None, config: Config) -> str:
    """<config file's name>[-<tag>]; without a file and tag, a hash of the configuration."""
    parts = [Path(config_path).stem if config_path else "run", tag or ""]
    if not config_path and not tag:
        parts[1] = run_id(config)
    return "-".join(part for part in parts if part)


@schema_options
def command(
    context: typer.Context,
    *,
    config_path: ConfigFile = None,
    overrides: Overrides = None,
    tag: Annotated[str | None, typer.Option(metavar="NAME", help="Added to the run's name.")] = None,
    out_dir: Annotated[str | None, output_folder("The run's folder; default: <checkpoint.runs_dir>/<name>.")] = None,
    stages: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Stages to work on now (default: all); finished ones are always loaded."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove what an earlier run left in the folder.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks, and log every step with its memory and shapes.")
    ] = False,
    flags: dict[str, Any],
) -> dict[str, Any]:
    """Train a sender and its receivers, then evaluate.

    Stages: salience, slot tuning, closed form, end to end, codecs, tuned baselines.
    The same command again goes on where it was cut off.

    Example: latentwire train --config configs/smoke/lora.json --samples 64
    """
    config = load_config(config_path, overrides, (DEBUG if debug else {}) | flags)
    chosen = list(STAGES) if stages is None else names_of(stages)
    if not chosen:
        raise ConfigError(f"--stages: names no stage (there are {', '.join(STAGES)})")
    unknown = sorted(set(chosen) - set(STAGES))
    if unknown:
        raise ConfigError(f"--stages: unknown stage {unknown[0]!r} (there are {', '.join(STAGES)})")
    solved = config.encoder.type == "backbone" or config.checkpoint.init_from
    if stages is not None and "closed_form" in chosen and not solved:
        raise ConfigError(f"--stages: closed_form solves encoder.type = 'backbone', not {config.encoder.type!r}")
    if stages is not None and "codec" in chosen and not config.codec.learned:
        raise ConfigError("--stages: codec trains the codecs that codec.learned names, and that is empty")
    if stages is not None and not config.features.use_lora and (tuned := {"slot_tuning", "baselines"} & set(chosen)):
        raise ConfigError(f"--stages: {min(tuned)} trains LoRA, and features.use_lora is off")
    folder = Path(out_dir) if out_dir else Path(config.checkpoint.runs_dir) / run_name(config_path, tag, config)
    if dry_run:
        print(dump_json(config.model_dump(mode="json")), end="")
        return {"run": str(folder), "config": config.model_dump(mode="json")}
    evaluates = bool(config.evaluation.samples) and "end_to_end" in chosen
    named = bool(out_dir or tag)
    words = command_line(context)
    return train(config, folder, stages=chosen, words=words, fresh=fresh, evaluates=evaluates, named=named)


def train(
    config: Config,
    folder: Path,
    *,
    words: Sequence[str],
    stages: Sequence[str] = STAGES,
    fresh: bool = False,
    evaluates: bool = True,
    named: bool = True,
) -> dict[str, Any]:
    """Run stages in a folder, then evaluate what was trained; returns the folder, its checkpoint, its evaluation."""
    from latentwire.checkpoint.tensors import read_info
    from latentwire.evaluation.run import evaluate_system
    from latentwire.model.pretrained import reload_checkpoint  # torch is loaded only when it is needed
    from latentwire.training.pipeline import Run

    run = Run(config, folder, stages=stages, command=words, fresh=fresh, evaluates=evaluates, named=named)
    folder = run.folder.path
    system = run.execute()
    results = None
    if run.processes.is_main and (run.folder.last / INDEX).is_file():
        print(f"checkpoint: {run.folder.last}")
        if evaluates:
            reload_checkpoint(system, run.folder.last)  # as it is kept, not as it was in memory
            files = read_info(run.folder.last)["files"]
            results = evaluate_system(system, run.config, folder, command=words, checkpoint=files)
    return {"run": str(folder), "checkpoint": str(run.folder.last), "evaluation": results}


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Train with command-line arguments; returns the run's folder, its checkpoint and its evaluation.

    Raises LatentWireError where the user's input is at fault.
    """
    result: dict[str, Any] = invoke("train", args)
    return result


if __name__ == "__main__":
    run_and_exit(main)
