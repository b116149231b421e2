"""`latentwire eval`: evaluate a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from latentwire.cli.extras import extras
from latentwire.cli.options import Checkpoint, OnlyReceivers, Overrides, names_of, output_folder
from latentwire.cli.run import command_line, invoke, run_and_exit
from latentwire.config import Config, some_receivers
from latentwire.config.load import parse_overrides
from latentwire.config.sections.inputs import Dataset
from latentwire.core.atomic import make_folder
from latentwire.core.errors import ConfigError
from latentwire.core.names import RESULTS

OF_TRAINING = (
    *("curriculum.", "losses.", "optimizer.", "latents.", "codec."),
    *("data.data_path", "data.samples", "data.text_path", "data.cloze", "data.renamed"),
)
"""Keys that an evaluation does not look at."""


def command(
    context: typer.Context,
    ckpt: Checkpoint,
    dataset: Annotated[Dataset | None, typer.Option(help="Default: as trained.")] = None,
    data_path: Annotated[
        str | None,
        typer.Option(
            "--data_path",
            metavar="FILE",
            help="Held-out file in the dataset's original format; with --suite, for tasks that read a file.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Number of questions; default: evaluation.samples.")
    ] = None,
    out_dir: Annotated[str | None, output_folder("Where the results go; default: the folder given as --ckpt.")] = None,
    fresh_eval: Annotated[
        bool, typer.Option("--fresh_eval", help="Evaluate again where out_dir already holds these very results.")
    ] = False,
    receivers: OnlyReceivers = None,
    suite: Annotated[
        Literal["lm-eval"] | None, typer.Option(help="Run tasks of EleutherAI's harness in place of a dataset.")
    ] = None,
    tasks: Annotated[str | None, typer.Option(metavar="A,B", help="Of the suite: its tasks, groups or tags.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Of the suite: documents of each task; default: all.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num_fewshot", min=0, help="Of the suite: worked examples before each question.")
    ] = None,
    include_path: Annotated[
        str | None, typer.Option("--include_path", metavar="DIR", help="Of the suite: a folder of more tasks.")
    ] = None,
    context_fields: Annotated[
        str | None,
        typer.Option(
            "--context_fields", metavar="A,B", help="Of the suite: fields of a document that hold its context."
        ),
    ] = None,
    rivals: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Also measure other methods at equal positions: llmlingua, kvpress."),
    ] = None,
    overrides: Overrides = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> dict[str, Any]:
    """Evaluate a checkpoint against every baseline; writes eval.json, eval.csv, predictions and passages.

    With --suite, tasks of a harness are run instead, their context passed as latents; writes lm_eval.json.

    Example: latentwire eval --ckpt checkpoints/default --dataset squad --data_path dev.json --out runs/dev
    """
    of_suite = {
        "--tasks": tasks,
        "--limit": limit,
        "--num_fewshot": num_fewshot,
        "--include_path": include_path,
        "--context_fields": context_fields,
    }
    of_data = {"--dataset": dataset, "--samples": samples, "--rivals": rivals}
    if suite:
        _refuse(of_data, "with --suite")
        if not names_of(tasks):
            raise ConfigError("--suite: needs --tasks")
    else:
        _refuse(of_suite, "without --suite")
    from latentwire.checkpoint.index import find_checkpoint, load_config_of
    from latentwire.checkpoint.tensors import read_info
    from latentwire.evaluation.run import evaluate_system, held_out, known_results
    from latentwire.model.pretrained import load_checkpoint

    folder = find_checkpoint(ckpt)
    if not out_dir and not Path(ckpt).is_dir():
        raise ConfigError(f"--out: {ckpt} is on the Hub, so the results need a folder here")
    trained, files = load_config_of(folder), read_info(folder)["files"]
    eval_path = None if suite else data_path  # which the tasks of a suite read by themselves
    config = load_config_of(folder, _changes(trained, overrides, dataset, eval_path, samples, rivals))
    wanted = list(some_receivers(config.model.chosen, names_of(*(receivers or ())), f"--receivers: {folder}"))
    out = Path(out_dir or ckpt)
    if suite:
        with extras():
            from latentwire.evaluation.suite import Suite, run_suite

        asked = Suite(names_of(tasks), limit, num_fewshot, include_path, data_path, names_of(context_fields) or None)
        return run_suite(
            asked,
            folder,
            config,
            files,
            wanted,
            out,
            command=command_line(context),
            fresh=fresh_eval,
            quiet=quiet,
        )
    done, passages = out / RESULTS, held_out(config)
    results = None if fresh_eval else known_results(done, config, wanted, files, passages)
    if results is not None:
        if not quiet:
            print(f"{done} holds these results already; --fresh_eval evaluates again")
        return results
    make_folder(out)  # what is wrong with it is said before models are loaded
    system = load_checkpoint(folder, config, wanted)
    return evaluate_system(
        system,
        config,
        out,
        command=command_line(context),
        checkpoint=files,
        quiet=quiet,
        passages=passages,
    )


def _refuse(flags: Mapping[str, object], where: str) -> None:
    """ConfigError for a flag that was given where it does nothing."""
    for flag, value in flags.items():
        if value is not None:
            instead = "; --limit takes so many documents of each task" if flag == "--samples" else ""
            raise ConfigError(f"{flag}: does nothing {where}{instead}")


def _changes(
    trained: Config,
    overrides: Sequence[str] | None,
    dataset: Dataset | None,
    eval_path: str | None,
    samples: int | None,
    rivals: str | None,
) -> dict[str, Any]:
    """Dotted keys in which a checkpoint's configuration changes by flags, which count more than overrides."""
    changes: dict[str, Any] = parse_overrides(overrides)
    for key in sorted(key for key in changes if key.startswith(OF_TRAINING)):
        raise ConfigError(f"--override {key}: does nothing here; --data_path and --samples say what is evaluated")
    if dataset:
        changes["data.dataset"] = dataset
        if dataset != trained.data.dataset:
            changes.setdefault("data.eval_path", None)
    if eval_path:
        changes["data.eval_path"] = eval_path
    if samples:
        changes["evaluation.samples"] = samples
    if rivals:
        changes["evaluation.rivals"] = names_of(rivals)
    return changes


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Evaluate with command-line arguments; returns what eval.json holds. Raises LatentWireError on bad input."""
    results: dict[str, Any] = invoke("eval", args)
    return results


if __name__ == "__main__":
    run_and_exit(main)
