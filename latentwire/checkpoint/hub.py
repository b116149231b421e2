"""Checkpoints in repositories on the Hub, fetched file by file into the Hub's own cache, as they are read.

A repository is one checkpoint for several ends, each of which reads its own files alone. That is why this is not
`huggingface_hub.ModelHubMixin`, for which a repository is one class with all of its weights.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

from latentwire.core.errors import CheckpointError
from latentwire.core.hub import FIRST_HUB_SECONDS, HUB_SECONDS, ask_hub, hub_reason

NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(.+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
CACHED = "models--"


def hub_name(name: Path) -> tuple[str, str | None] | None:
    """Repository and revision that a name such as org/name or org/name@revision stands for; None for a local path.

    Where there is a folder org here, all that begins with it is local: a path with a typing error goes nowhere.
    """
    found = NAME.fullmatch(name.as_posix())
    return None if found is None or Path(name.parts[0]).exists() else (found[1], found[2])


def fetch(repository: str, file: str, revision: str | None = None) -> Path:
    """A file of a repository, in the Hub's cache; `revision`: branch, tag or commit.

    It is fetched if it has changed on the Hub. Where that does not answer, what was fetched before will do;
    CheckpointError where there is nothing.
    """
    kept = None
    try:
        cached = try_to_load_from_cache(repository, file, revision=revision)
        kept = Path(cached) if isinstance(cached, str) else None
        if kept is None or not COMMIT.fullmatch(revision or ""):
            ask_hub(repository, FIRST_HUB_SECONDS if kept is None else HUB_SECONDS, revision)
            kept = Path(hf_hub_download(repository, file, revision=revision))
        return kept
    except Exception as error:  # what the HTTP client may raise is no closed list
        if kept is not None:
            return kept
        name = f"{repository}@{revision}" if revision else repository
        why = hub_reason(error, repository)
        raise CheckpointError(f"{name}: not on this machine, and the Hub did not give its {file} ({why})") from error


def fetch_beside(folder: Path, file: str) -> None:
    """Fetch one more file of the same commit into a folder of the Hub's cache; other folders are left as they are.

    There a commit lies in <cache>/models--<org>--<name>/snapshots/<commit>.
    """
    inside = Path(constants.HF_HUB_CACHE) in folder.parents
    name = folder.parent.parent.name
    if inside and folder.parent.name == "snapshots" and name.startswith(CACHED):
        fetch(name.removeprefix(CACHED).replace("--", "/"), file, folder.name)
