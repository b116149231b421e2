"""`latentwire average`: one checkpoint from several that went on from the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentwire.cli.options import CHECKPOINT, output_folder
from latentwire.core.errors import ConfigError


def average(
    checkpoints: Annotated[list[str], typer.Argument(metavar="CKPT...", help=f"Two or more: {CHECKPOINT}")],
    out_dir: Annotated[str, output_folder("Where the new checkpoint goes.")],
) -> dict[str, Any]:
    """Average the weights of checkpoints that went on from the same weights; the mean often reads better than each.

    A file that is the same in several of them counts once. A receiver that only one run trained becomes the mean of
    what it was and what it became. Where the runs trained the sender, the mean has one of its own, for new messages,
    and no codebooks (learned codecs); else it has those of the first checkpoint.

    Example: latentwire average checkpoints/default runs/more --out runs/mean
    """
    from latentwire.checkpoint.average import average as write_mean
    from latentwire.checkpoint.index import find_checkpoint
    from latentwire.checkpoint.tensors import read_info

    if len(checkpoints) < 2:
        raise ConfigError("CKPT: two checkpoints or more make a mean")
    folders, out = [find_checkpoint(name) for name in checkpoints], Path(out_dir)
    averaged, shared = write_mean(folders, out, ["latentwire", "average", *checkpoints, "--out", out_dir])
    print(f"{out}: {', '.join(averaged)} averaged, {shared} files taken over")
    return read_info(out)
