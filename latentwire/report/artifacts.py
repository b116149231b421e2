"""What a run or an evaluation left in its folder, as far as it has come. No model and no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentwire.core.errors import LatentWireError
from latentwire.core.json_files import read_json, read_jsonl, read_object
from latentwire.core.names import CONFIG, EXPORTED_LOG, FAILED, LOG, MANIFEST, PASSAGES, PREDICTIONS, RESULTS
from latentwire.diagnostics.log import read_log
from latentwire.report.ablation import PLAN
from latentwire.report.results import checked, read_results

NOT_STARTED = "not started"
FILES = (CONFIG, MANIFEST, LOG, EXPORTED_LOG, RESULTS, PREDICTIONS, PASSAGES, FAILED)


@dataclass
class RunFiles:
    """A folder's files; what is not there is empty. `name` tells it from the others of a report."""

    name: str
    folder: Path
    manifest: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] | None = None
    answers: list[dict[str, Any]] = field(default_factory=list)
    passages: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    @property
    def receivers(self) -> dict[str, dict[str, Any]]:
        """What was measured of each receiver."""
        return self.results["receivers"] if self.results else {}

    @property
    def log_file(self) -> Path:
        """Where its training log is; an exported checkpoint has it under another name."""
        exported = self.folder / EXPORTED_LOG
        return exported if exported.is_file() else self.folder / LOG

    @property
    def missing(self) -> list[str]:
        """What cannot be shown of it, and why."""
        if self.error == NOT_STARTED:
            return [NOT_STARTED]
        out = [f"the run failed: {self.error}"] if self.error else []
        if self.results is None:
            out.append("no eval.json: it was not evaluated, so scores, cost and latency are left out")
        if not self.answers:
            out.append("no predictions.jsonl: single answers are left out")
        elif not self.passages:
            out.append("no passages.jsonl: passages and what each latent covers are left out")
        elif not any(True for _ in self.attention()):
            out.append("no attention in predictions.jsonl (evaluation.attention_examples): its picture is left out")
        if not self.log:
            out.append("no diagnostics.jsonl: training curves are left out")
        return out

    def attention(self) -> Iterator[list[float]]:
        """Every attention over latents that was measured."""
        for row in self.answers:
            for modes in answers_in(row).values():
                if "attention" in modes.get("latent", {}):
                    yield modes["latent"]["attention"]


def answers_in(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The answers of a line of predictions.jsonl: receiver -> mode -> answer."""
    return {name: value for name, value in row.items() if isinstance(value, dict)}


def read_runs(folders: Sequence[Path]) -> list[RunFiles]:
    """The runs in some folders, each once; that of an ablation stands for all its runs. LatentWireError where a file is
    broken."""
    chosen: dict[Path, tuple[Path, bool]] = {}  # by the folder that it is; whether an ablation has it planned
    for folder in folders:
        if (folder / PLAN).is_file():
            with checked(folder / PLAN):
                for path in (folder / run["name"] for run in read_json(folder / PLAN)["runs"]):
                    chosen.setdefault(path.resolve(), (path, True))
        else:
            chosen.setdefault(folder.resolve(), (folder, False))
    short = [path.name for path in chosen]
    runs = []
    for (path, planned), own in zip(chosen.values(), short, strict=True):
        name = own if short.count(own) == 1 else str(path)
        begun = any((path / file).is_file() for file in FILES)
        runs.append(read_run(path, name) if begun or not planned else RunFiles(name, path, error=NOT_STARTED))
    return runs


def read_run(folder: Path, name: str) -> RunFiles:
    """All that one folder holds; LatentWireError where that is nothing, or not what it should be."""
    there = {file: folder / file for file in FILES if (folder / file).is_file()}
    if not there:
        raise LatentWireError(f"{folder}: {_nothing(folder)}")
    run = RunFiles(name, folder)
    if path := there.get(RESULTS):
        with checked(path):
            run.results = read_results(path)
            run.manifest = run.results["manifest"]
            run.config = run.manifest["config"] or {}
    for attribute in ("manifest", "config"):  # those of the training, where there was one
        if path := there.get(f"{attribute}.json"):
            setattr(run, attribute, read_object(path))
    run.config = run.config or run.manifest.get("config") or {}
    if run.log_file.is_file():
        run.log = read_log(run.log_file)
    if path := there.get(PREDICTIONS):
        run.answers = read_jsonl(path)
    if path := there.get(PASSAGES):
        run.passages = read_jsonl(path)
    if path := there.get(FAILED):
        with checked(path):
            run.error = str(read_object(path)["error"])
    return run


def _nothing(folder: Path) -> str:
    return "holds nothing that a run or an evaluation writes" if folder.is_dir() else "no such folder"
