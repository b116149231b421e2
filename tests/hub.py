"""The Hub in a folder: what LatentWire calls of its client, without a network."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects


class LocalHub:
    """Repositories as folders of commits, and a cache that is laid out as the Hub's client lays out its own.

    `fetched` lists the files that were downloaded, `asked` the repositories that were asked for; with `answers` False
    nothing is to be had, with `writable` False nothing can be pushed.
    """

    def __init__(self, root: Path):
        self.root = root
        self.refs: dict[str, dict[str, str]] = {}
        self.private: dict[str, bool | None] = {}
        self.fetched: list[str] = []
        self.asked: list[str] = []
        self.answers = self.writable = True

    def model_info(self, repo_id: str, *, revision: str | None = None, timeout: float | None = None) -> Any:
        self.asked.append(repo_id)
        sha = None if repo_id in self.private and repo_id not in self.refs else self._commit(repo_id, revision)
        return SimpleNamespace(sha=sha, private=bool(self.private.get(repo_id)))

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str | None = None) -> str:
        commit = self._commit(repo_id, revision)
        source = self.root / "repositories" / repo_id / commit / filename
        if not source.is_file():
            raise refusal(RemoteEntryNotFoundError, 404)
        self.fetched.append(filename)
        cache = self.root / "cache" / f"models--{repo_id.replace('/', '--')}"
        (cache / "refs").mkdir(parents=True, exist_ok=True)
        if revision != commit:
            (cache / "refs" / (revision or "main")).write_text(commit)
        target = cache / "snapshots" / commit / filename
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
        return str(target)

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> Any:
        if not self.writable:
            raise refusal(HfHubHTTPError, 403)
        assert exist_ok
        self.private.setdefault(repo_id, private)
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: Path,
        allow_patterns: Sequence[str],
        delete_patterns: Sequence[str],
        commit_message: str,
    ) -> Any:
        refs = self.refs.setdefault(repo_id, {})
        commit = hashlib.sha1(f"{repo_id}{len(refs)}".encode()).hexdigest()
        target = self.root / "repositories" / repo_id / commit
        if "main" in refs:
            gone = list(
                filter_repo_objects(files_in(target.parent / refs["main"]), allow_patterns=list(delete_patterns))
            )
            shutil.copytree(target.parent / refs["main"], target, ignore=lambda *_: [Path(name).name for name in gone])
        for name in filter_repo_objects(files_in(folder_path), allow_patterns=list(allow_patterns)):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder_path / name, target / name)
        refs |= {"main": commit, f"v{len(refs) or 1}": commit}
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/{commit}", message=commit_message)

    def files(self, repo_id: str) -> set[str]:
        """What a repository holds now."""
        return set(files_in(self.root / "repositories" / repo_id / self.refs[repo_id]["main"]))

    def _commit(self, repo_id: str, revision: str | None) -> str:
        if not self.answers:
            raise httpx2.ConnectError("no route to host")
        if repo_id not in self.refs:
            raise refusal(RepositoryNotFoundError, 401)
        refs = self.refs[repo_id]
        if revision in refs.values():
            return str(revision)
        if (revision or "main") not in refs:
            raise refusal(RevisionNotFoundError, 404)
        return refs[revision or "main"]


def local_hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """Put an empty one in the place of the Hub and of its cache."""
    hub = LocalHub(root)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root / "cache"))
    monkeypatch.setattr("latentwire.checkpoint.hub.hf_hub_download", hub.hf_hub_download)
    for module in ("core.hub", "checkpoint.push"):
        monkeypatch.setattr(f"latentwire.{module}.HfApi", lambda: hub)
    return hub


def files_in(folder: Path) -> list[str]:
    """Names of all files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def refusal(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    """An answer of the Hub that is an error."""
    return kind("refused", response=httpx2.Response(status, request=httpx2.Request("GET", "https://hub")))
