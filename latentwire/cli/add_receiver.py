"""`latentwire add-receiver`: a receiver joins a trained wire, whose sender and other receivers stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentwire.cli.options import DEFAULT_CHECKPOINT, Checkpoint, Overrides, changes_of, names_of, output_folder
from latentwire.config.sections.inputs import Dataset, check_name
from latentwire.config.sections.running import EvaluationConfig
from latentwire.config.sections.training import CurriculumConfig
from latentwire.core.errors import ConfigError


def add_receiver(
    name: Annotated[str, typer.Option(metavar="NAME", help="What the receiver is to be called.")],
    model: Annotated[str, typer.Option(metavar="ID", help="Built-in alias, Hub id, local folder or .gguf file.")],
    out_dir: Annotated[str, output_folder("The run's folder.")],
    ckpt: Checkpoint = DEFAULT_CHECKPOINT,
    dataset: Annotated[Dataset | None, typer.Option(help="Default: as the others.")] = None,
    data_path: Annotated[
        str | None, typer.Option("--data_path", metavar="A,B", help="Training files; default: as the others.")
    ] = None,
    eval_path: Annotated[
        str | None, typer.Option("--eval_path", metavar="FILE", help="Held-out file to measure the receiver on.")
    ] = None,
    text_path: Annotated[
        str | None, typer.Option("--text_path", metavar="FILE", help="Plain text, one paragraph a line.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Most training questions; default: as the others.")] = None,
    steps: Annotated[int, typer.Option(min=0, help="Most end-to-end steps.")] = 1000,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove what an earlier run left in the folder.")] = False,
) -> dict[str, Any]:
    """Add a receiver to a trained checkpoint without touching its sender: messages that were sent are read by it too.

    The receiver is tuned on its own slots, its generator is solved from the sender's latents, both are trained on
    answers, and its text baselines are tuned. The new checkpoint, DIR/last, holds all receivers. The same command again
    goes on where it was cut off.

    Example: latentwire add-receiver --name qwen --model Qwen/Qwen2.5-0.5B-Instruct --data_path squad_train.json
    --out_dir runs/with-qwen
    """
    from latentwire.checkpoint.index import codebooks_of, find_checkpoint, load_config_of
    from latentwire.cli.train import train

    try:
        check_name(name)
    except ValueError as error:
        raise ConfigError(f"--name: {error}") from None
    folder = find_checkpoint(ckpt)
    trained = load_config_of(folder)
    known = trained.model.chosen
    if name in known:
        raise ConfigError(f"--name: {folder} has a receiver {name!r} already (it has: {', '.join(known)})")
    changes: dict[str, Any] = {
        "model.receivers": known | {name: model},
        "model.llama_id": None,
        "model.qwen_id": None,
        "checkpoint.init_from": str(folder),
        "curriculum.train_only": [name],
        "curriculum.closed_form.companion_for": None,
        "curriculum.end_to_end.max_steps": steps,
        "losses.latent_scale_weight": 0.0,  # a matter of the sender
        "features.use_gist_head": False,  # the same
        "codec.learned": [kind for kind in trained.codec.learned if kind in codebooks_of(folder)],
    }
    if dataset and dataset != trained.data.dataset:
        changes |= {"data.dataset": dataset, "data.data_path": None, "data.eval_path": None}
    if dataset or data_path:  # the texts beside the checkpoint's own data do not belong to these
        changes |= {"data.text_path": None, "data.cloze": 0}
    of_data: dict[str, Any] = {"dataset": dataset, "data_path": data_path, "eval_path": eval_path}
    of_data |= {"text_path": text_path, "samples": samples}
    given = {key: value for key, value in of_data.items() if value is not None}
    said = {f"data.{key}": f"--{key}" for key in given}
    own = changes_of(overrides, said | {"curriculum.end_to_end.max_steps": "--steps"})
    usual = CurriculumConfig()
    for stage in ("slot_tuning", "baselines"):  # the run that made it took its own over from an earlier one
        if getattr(trained.curriculum, stage).max_steps == 0 and f"curriculum.{stage}.epochs" not in own:
            changes[f"curriculum.{stage}.max_steps"] = getattr(usual, stage).max_steps
    changes |= {f"data.{key}": value for key, value in (given | {"data_path": names_of(data_path)}).items() if value}
    facts = (dataset or trained.data.dataset) == "facts"
    if (eval_path or facts) and not trained.evaluation.samples:  # the run that made it left evaluation out
        changes["evaluation.samples"] = EvaluationConfig().samples
    config = load_config_of(folder, changes | own)
    words = ["latentwire", "add-receiver", "--ckpt", ckpt, "--name", name, "--model", model, "--out_dir", out_dir]
    words += [word for key, value in (given | {"steps": steps}).items() for word in (f"--{key}", str(value))]
    words += [word for change in overrides or [] for word in ("--override", change)] + ["--fresh"] * fresh
    asked = bool(config.data.eval_path) or config.data.dataset == "facts" or "evaluation.samples" in own
    measured = bool(config.evaluation.samples) and asked
    return train(config, Path(out_dir), words=words, fresh=fresh, evaluates=measured)
