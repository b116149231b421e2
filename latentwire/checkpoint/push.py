"""An exported checkpoint into a repository on the Hub."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from latentwire.checkpoint.tensors import checked_file, read_info
from latentwire.core.errors import CheckpointError
from latentwire.core.hub import hub_reason
from latentwire.core.json_files import mapping_at, read_object
from latentwire.core.names import CARD, EXPORTED_LOG, INDEX, RESULTS

BESIDE = (CARD, RESULTS, EXPORTED_LOG)
"""What an export writes beside the index and the weights: the model card, and what it is made of."""


def push_to_hub(
    folder: str | Path, repo_id: str, *, private: bool = False, message: str = "Upload a LatentWire checkpoint"
) -> str:
    """Put an exported checkpoint into a model repository, and return the address of the commit.

    The repository is made if need be, as a private one if asked for. Everything goes in one commit, which also takes
    the weights of an earlier one away; README.md becomes the model card. Who may write is a matter of the Hub's
    client: `hf auth login`, or HF_TOKEN. CheckpointError, before anything is sent, where the folder is not an export
    or is damaged, and where the Hub refuses.
    """
    folder = Path(folder)
    files = read_info(folder)["files"]
    if not (folder / CARD).is_file():
        raise CheckpointError(
            f"{folder}: no {CARD}, so this is not an export; make one with: latentwire export --ckpt {folder} --out DIR"
        )
    for name, file in files.items():
        checked_file(folder, name, file)
    if (folder / RESULTS).is_file() and _is_local(read_object(folder / RESULTS, CheckpointError)):
        raise CheckpointError(
            f"{folder / RESULTS}: names folders of this machine; take it away, or export again into another folder "
            "with it as --results"
        )
    try:
        repository = HfApi().create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not HfApi().model_info(repository.repo_id).private:
            raise CheckpointError(f"--private: {repository.repo_id} is there already, and public; nothing was sent")
        commit = HfApi().upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in (INDEX, *files, *BESIDE)],
            delete_patterns=["*.safetensors", *BESIDE],
            commit_message=message,
        )
    except CheckpointError:
        raise
    except Exception as error:  # what the HTTP client may raise is no closed list
        raise CheckpointError(f"{repo_id}: not pushed to the Hub ({hub_reason(error, repo_id)})") from error
    return commit.commit_url


def _is_local(results: dict[str, Any]) -> bool:
    """Whether an evaluation is as it was written; an export passes it on without the options of a machine."""
    config = mapping_at(mapping_at(results, "manifest"), "config")
    return "runs_dir" in mapping_at(config, "checkpoint")
