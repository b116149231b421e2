"""The models on this machine: where they lie and what they take. No torch here."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latentwire.backbone.aliases import ALIASES
from latentwire.core.errors import ModelError
from latentwire.core.paths import cache_dir

Place = Literal["cache", "hub", "package", "none"]


@dataclass(frozen=True)
class StoredModel:
    """A model by the name that a configuration gives it, and where it would be loaded from.

    place: LatentWire's own cache, the Hub's cache, installed packages that are yet to be unpacked, or nowhere.
    """

    name: str
    place: Place
    path: Path | None
    bytes: int


def models_dir() -> Path:
    """Where models are kept that were unpacked from GGUF files."""
    return cache_dir() / "models"


def stored_models() -> list[StoredModel]:
    """The built-in models, wherever they are, then what else was unpacked or downloaded before.

    Places are looked at in the order in which loading looks at them.
    """
    kept = {folder.name: StoredModel(folder.name, "cache", folder, size_of(folder)) for folder in _kept()}
    hub = {repo.repo_id: repo for repo in _hub_repos()}
    out = []
    for name, alias in ALIASES.items():
        repo = hub.pop(alias.hub_id, None)
        if name in kept:
            out.append(kept.pop(name))
        elif repo is not None:
            out.append(_downloaded(name, repo))
        elif alias.installed:
            out.append(StoredModel(name, "package", alias.folders[0], sum(map(size_of, alias.folders))))
        else:
            out.append(StoredModel(name, "none", None, 0))
    return [*out, *kept.values(), *(_downloaded(name, repo) for name, repo in hub.items())]


def remove_model(name: str) -> StoredModel:
    """Remove an unpacked or downloaded model; ModelError where there is none of this name, or not ours to remove."""
    known = {model.name: model for model in stored_models() if model.place != "none"}
    if name not in known:
        raise ModelError(f"model {name!r}: not on this machine (there are: {', '.join(known) or 'none'})")
    model = known[name]
    if model.place == "package":
        packages = " ".join(ALIASES[name].packages)
        raise ModelError(f"model {name!r}: it is an installed package; remove it with: pip uninstall {packages}")
    if model.place == "cache":
        assert model.path is not None
        # Out of sight first: who looks meanwhile must not find half a model.
        grave = Path(tempfile.mkdtemp(dir=model.path.parent, prefix=f".{name}.old."))
        os.replace(model.path, grave / name)
        shutil.rmtree(grave)
    else:
        from huggingface_hub import scan_cache_dir

        hub_id = ALIASES[name].hub_id if name in ALIASES else name
        (repo,) = (repo for repo in _hub_repos() if repo.repo_id == hub_id)
        scan_cache_dir(_hub_dir()).delete_revisions(*(r.commit_hash for r in repo.revisions)).execute()
    return model


def size_of(folder: Path) -> int:
    """Bytes of all files under a folder; links are followed, as in the Hub's cache."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _kept() -> Iterator[Path]:
    for folder in sorted(models_dir().glob("*")):
        if not folder.name.startswith(".") and (folder / "config.json").is_file():
            yield folder


def _downloaded(name: str, repo: Any) -> StoredModel:
    newest = max(repo.revisions, key=lambda revision: revision.last_modified)
    return StoredModel(name, "hub", newest.snapshot_path, repo.size_on_disk)


def _hub_dir() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _hub_repos() -> Iterable[Any]:
    """The Hub's cached models that have weights that can be loaded, by name."""
    if not _hub_dir().is_dir():
        return []
    from huggingface_hub import scan_cache_dir

    repos = (repo for repo in scan_cache_dir(_hub_dir()).repos if repo.repo_type == "model")
    return sorted((repo for repo in repos if any(map(_has_weights, repo.revisions))), key=lambda repo: repo.repo_id)


def _has_weights(revision: Any) -> bool:
    names = [file.file_name for file in revision.files]
    return "config.json" in names and any(name.endswith(".safetensors") for name in names)
