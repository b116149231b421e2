"""`latentwire average`: one checkpoint from several that went on from the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentwire.cli.options import Debug, output_folder
from latentwire.cli.run import CHECKPOINT
from latentwire.core.atomic import atomic_dir
from latentwire.core.errors import ConfigError
from latentwire.core.json_files import mapping_at, write_jsonl
from latentwire.core.names import EXPORTED_LOG


def average(
    checkpoints: Annotated[list[str], typer.Argument(metavar="CKPT...", help=f"Two or more: {CHECKPOINT}")],
    out_dir: Annotated[str, output_folder("Where the new checkpoint goes.")],
    debug: Debug = False,
) -> dict[str, Any]:
    """Average the weights of checkpoints that went on from the same weights; the mean often reads better than each.

    A file that is the same in several of them counts once. A receiver that only one run trained becomes the mean of
    what it was and what it became. Where the runs trained the sender, the mean has one of its own, for new messages,
    and no codebooks (learned codecs); else it has those of the first checkpoint.

    Example: latentwire average checkpoints/default runs/more --out runs/mean
    """
    from latentwire.checkpoint.export import check_target, histories, lineage, training_log
    from latentwire.checkpoint.index import SENDER, find_checkpoint
    from latentwire.checkpoint.tensors import read_info, save_folder
    from latentwire.core.manifest import run_manifest
    from latentwire.training.average import average as mean_of
    from latentwire.wire.codecs import LearnedCodec, parse_codec

    if len(checkpoints) < 2:
        raise ConfigError("CKPT: two checkpoints or more make a mean")
    folders, out = [find_checkpoint(Path(name)) for name in checkpoints], Path(out_dir)
    for folder in folders:
        check_target(out, folder)
    state, shared = mean_of(folders)
    runs = list(dict.fromkeys(run for folder in folders for run in lineage(folder)))
    of_first = {key: value for key, value in read_info(folders[0]).items() if key in ("config", "data_licence")}
    of_first["config"].get("checkpoint", {}).pop("init_from", None)
    if SENDER not in shared:  # a new one, which no codebook is for
        of_first["config"].get("codec", {}).pop("learned", None)
        sends = mapping_at(of_first["config"], "evaluation").get("codec")
        if sends and isinstance(parse_codec(sends), LearnedCodec):
            del of_first["config"]["evaluation"]["codec"]
    command = ["latentwire", "average", *checkpoints, "--out", out_dir]
    with atomic_dir(out) as new:
        made = {"manifest": run_manifest(None, command), "earlier": histories(runs)}
        save_folder(new, state, of_first | made, copied=shared)  # in fp32: a mean has more bits than what it is of
        if log := training_log(runs, last=None):
            write_jsonl(new / EXPORTED_LOG, log)
    print(f"{out}: {', '.join(sorted(state))} averaged, {len(shared)} files taken over")
    return read_info(out)
