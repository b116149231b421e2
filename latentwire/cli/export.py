"""`latentwire export`: a checkpoint to pass on, small, with its log and model card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentwire.cli.options import Checkpoint, OnlyReceivers, names_of, output_folder
from latentwire.core.atomic import atomic_dir, write_text
from latentwire.core.errors import CheckpointError
from latentwire.core.json_files import write_json, write_jsonl
from latentwire.core.names import CARD, EXPORTED_LOG, INDEX, RESULTS
from latentwire.report.results import checked, read_results


def command(
    ckpt: Checkpoint,
    out_dir: Annotated[str, output_folder("Where the exported checkpoint goes.")],
    results: Annotated[
        str | None, typer.Option(metavar="FILE", help="eval.json of the exported checkpoint, for its card.")
    ] = None,
    receivers: OnlyReceivers = None,
    data_licence: Annotated[
        str | None,
        typer.Option(
            "--data_licence", metavar="TEXT", help="What the training files are, with their licences, for its card."
        ),
    ] = None,
) -> dict[str, Any]:
    """Export a checkpoint: matrices in 8 bits, no paths of this machine, training log, model card.

    The card gets its table from an evaluation of the exported checkpoint, so export twice. Example:

    \b
    latentwire export --ckpt runs/default --out checkpoints/mine
    latentwire eval --ckpt checkpoints/mine --out runs/exported
    latentwire export --ckpt runs/default --out checkpoints/mine --results runs/exported/eval.json
    """
    import torch

    from latentwire.checkpoint.export import (
        check_target,
        histories,
        lineage,
        measured_on,
        only_some,
        portable,
        training_log,
    )
    from latentwire.checkpoint.index import find_checkpoint
    from latentwire.checkpoint.tensors import load_folder, read_info, save_folder
    from latentwire.report.card import model_card

    folder, out = find_checkpoint(ckpt), Path(out_dir)
    check_target(out, folder)
    measured = read_results(Path(results)) if results else None
    runs = lineage(folder)
    with atomic_dir(out) as new:
        info = read_info(folder)
        state = load_folder(folder)
        if receivers:
            state, info = only_some(state, info, names_of(*receivers), f"--receivers: {folder}")
        with checked(folder / INDEX):
            earlier = histories(runs)[:-1]
            info = portable(info | {"earlier": earlier} | ({"data_licence": data_licence} if data_licence else {}))
        save_folder(new, state, info, dtype=torch.bfloat16, pack=True)
        info = read_info(new)
        with checked(Path(results or folder / INDEX)):
            if measured is not None:
                made = measured["manifest"]
                if not measured_on(made.get("checkpoint") or {}, info["files"]):
                    raise CheckpointError(f"--results: {results} is the evaluation of another checkpoint than this one")
                made |= portable({"config": made["config"], "manifest": made})["manifest"]
            card = model_card(info, measured)
        if measured is not None:
            write_json(new / RESULTS, measured)
        if log := training_log(runs, runs[-1]):
            write_jsonl(new / EXPORTED_LOG, log)
        write_text(new / CARD, card)
    size = sum(file["bytes"] for file in info["files"].values())
    print(f"{out}: {len(info['files'])} files, {size / 1e6:.1f} MB")
    return info
