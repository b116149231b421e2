"""`latentwire push`: an exported checkpoint into a repository on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint that `latentwire export` made.")],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository; made if need be.")],
    private: Annotated[bool, typer.Option("--private", help="Make it a private one.")] = False,
    message: Annotated[
        str, typer.Option("--message", "-m", metavar="TEXT", help="What the commit says.")
    ] = "Upload a LatentWire checkpoint",
) -> str:
    """Put an exported checkpoint into a model repository on the Hub, in one commit; README.md is its model card.

    Log in first: hf auth login. Every --ckpt then takes the repository's name.

    Example: latentwire push checkpoints/mine my-name/my-wire --private
    """
    from latentwire.checkpoint.push import push_to_hub

    address = push_to_hub(folder, repository, private=private, message=message)
    print(f"{repository}: {address}")
    return address
