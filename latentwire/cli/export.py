"""`python -m latentwire.cli.export`: a checkpoint to pass on, small, with its log and model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from latentwire.cli.run import invoke, run_and_exit
from latentwire.core.atomic import read_json, write_json, write_text
from latentwire.core.errors import CheckpointError

HERE = ("runs_dir", "tuned_cache", "init_from")


@click.command(name="latentwire.cli.export")
@click.option("--ckpt", required=True, metavar="DIR", help="Checkpoint, or a run's folder (its last checkpoint).")
@click.option("--out_dir", required=True, metavar="DIR", help="Where the exported checkpoint goes.")
@click.option("--results", metavar="FILE", help="eval.json of the exported checkpoint, for its card.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def command(ckpt: str, out_dir: str, results: str | None, debug: bool) -> dict[str, Any]:
    """Export a checkpoint: large matrices in 8 bits, no paths of this machine, training log, model card.

    The card gets its table from an evaluation of the exported checkpoint, so export twice:

    \b
    python -m latentwire.cli.export --ckpt runs/default --out_dir checkpoints/default
    python -m latentwire.cli.eval --ckpt checkpoints/default --out_dir runs/exported
    python -m latentwire.cli.export --ckpt runs/default --out_dir checkpoints/default --results runs/exported/eval.json
    """
    import torch

    from latentwire.checkpoint.system import find_checkpoint
    from latentwire.checkpoint.tensors import load_folder, read_info, save_folder
    from latentwire.report.card import model_card

    folder, out = find_checkpoint(Path(ckpt)), Path(out_dir)
    measured = read_json(Path(results)) if results else None
    info = portable(read_info(folder))
    save_folder(out, load_folder(folder), info, dtype=torch.bfloat16, pack=True)
    info = read_info(out)
    if measured is not None and measured["manifest"].get("checkpoint") != info["files"]:
        raise CheckpointError(f"--results: {results} is the evaluation of another checkpoint than the one in {out}")
    log = next((f for f in (folder / "diagnostics.jsonl", folder.parent / "diagnostics.jsonl") if f.is_file()), None)
    if log:
        write_text(out / "training.jsonl", log.read_text(encoding="utf-8"))
    if measured is not None:
        measured["manifest"]["config"] = portable({"config": measured["manifest"]["config"]})["config"]
        measured["manifest"]["command"] = [_name(word) for word in measured["manifest"]["command"]]
        write_json(out / "eval.json", measured)
    write_text(out / "README.md", model_card(info, measured))
    size = sum(file["bytes"] for file in info["files"].values())
    print(f"{out}: {len(info['files'])} files, {size / 1e6:.1f} MB")
    return info


def portable(info: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's index with file names in place of paths, and without where this machine keeps its runs."""
    config = info["config"]
    data = dict(config["data"])
    for key in ("data_path", "eval_path", "text_path"):
        paths = data[key]
        data[key] = [_name(p) for p in paths] if isinstance(paths, list) else paths and _name(paths)
    kept = {key: value for key, value in config["checkpoint"].items() if key not in HERE}
    out = info | {"config": config | {"data": data, "checkpoint": kept}}
    if "manifest" in info:
        out["manifest"] = info["manifest"] | {"command": [_name(word) for word in info["manifest"]["command"]]}
    return out


def _name(word: str) -> str:
    """A path's last part; what this project itself holds stays as it is."""
    own = word.startswith(("configs/", "checkpoints/", "latentwire"))
    return word if own or word.startswith("-") else Path(word).name


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Export with command-line arguments; returns the exported checkpoint's index."""
    info: dict[str, Any] = invoke(command, args)
    return info


if __name__ == "__main__":
    run_and_exit(main)
