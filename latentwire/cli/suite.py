"""`latentwire eval --suite lm-eval`: tasks of EleutherAI's harness, their context passed as latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latentwire.cli.extras import extras
from latentwire.config import Config
from latentwire.config.load import differences
from latentwire.core.atomic import make_folder
from latentwire.core.errors import ConfigError
from latentwire.core.hashing import sha256_file
from latentwire.core.json_files import mapping_at, read_json, write_json, write_jsonl
from latentwire.core.manifest import run_manifest

SCHEMA = 1


@dataclass(frozen=True)
class Suite:
    """What is asked of the harness."""

    tasks: list[str]
    limit: int | None
    num_fewshot: int | None
    include_path: str | None
    data_path: str | None
    context_fields: list[str] | None


def run_suite(
    suite: Suite,
    folder: Path,
    config: Config,
    files: dict[str, Any],
    receivers: Sequence[str],
    out: Path,
    *,
    command: Sequence[str],
    fresh: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Run the tasks; writes lm_eval.json, and a file of answers for each receiver and mode into lm_eval/.

    Both are written after every mode. What lm_eval.json has already, made with the very same, is not measured again.
    """
    with extras():
        import lm_eval

        from latentwire.evaluation.harness import CONTEXT_FIELDS, HARNESS_MODES, HarnessLM, Messages
        from latentwire.evaluation.suite import load_tasks, print_table, run_tasks, sample_rows
    from latentwire.checkpoint.system import load_checkpoint
    from latentwire.evaluation.modes import modes_for

    modes = [mode for mode in HARNESS_MODES if mode in config.evaluation.modes]
    if not modes:
        raise ConfigError(f"evaluation.modes: none of {', '.join(HARNESS_MODES)}, which the harness can measure")
    fields = tuple(suite.context_fields or CONTEXT_FIELDS)
    settings = asdict(suite) | {"context_fields": list(fields), "codec": config.evaluation.codec}
    settings |= {"lm_eval": lm_eval.__version__, "files": _files(suite)}
    manifest = run_manifest(config.model_dump(mode="json"), command) | {"checkpoint": files}
    manifest["versions"]["lm_eval"] = lm_eval.__version__
    results: dict[str, Any] = {"schema": SCHEMA, "suite": "lm-eval", "manifest": manifest, "settings": settings}
    path = out / "lm_eval.json"
    known = results["receivers"] = {} if fresh else known_results(path, results)
    left = [name for name in receivers if not set(modes) <= set(known.get(name, {}))]
    if not left:
        if not quiet:
            print(f"{path} holds these results already; --fresh_eval evaluates again")
        return results

    metadata = {} if suite.data_path is None else {"data_path": suite.data_path}
    include = None if suite.include_path is None else Path(suite.include_path)
    tasks = load_tasks(suite.tasks, include, suite.num_fewshot, metadata)
    make_folder(out)
    system = load_checkpoint(folder, config, left)
    messages = Messages(system.sender)
    for name, receiver in system.receivers.items():
        own, possible = known.setdefault(name, {}), {mode.name for mode in modes_for(receiver)}
        for mode in (mode for mode in modes if mode not in own):
            own[mode] = None  # such as tuned text, where nothing was tuned on it
            if mode in possible:
                lm = HarnessLM(receiver, mode, messages, fields, batch_size=config.evaluation.batch_size, quiet=quiet)
                own[mode], samples = run_tasks(lm, tasks, suite.limit, config.evaluation.bootstrap)
                write_jsonl(out / "lm_eval" / f"{name}-{mode}.jsonl", sample_rows(samples))
            write_json(path, results)
    if not quiet:
        print_table(results)
        print(f"results: {path}")
    return results


def _files(suite: Suite) -> dict[str, str]:
    """Hashes of the files behind tasks of one's own: with others, results are others."""
    files = [Path(suite.data_path)] if suite.data_path else []
    if suite.include_path:
        files += [file for file in Path(suite.include_path).rglob("*") if file.suffix in (".yaml", ".yml", ".py")]
    return {str(file): sha256_file(file) for file in sorted(files) if file.is_file()}


def known_results(path: Path, results: dict[str, Any]) -> dict[str, Any]:
    """What the file holds of receivers and modes that were measured with the same settings, checkpoint and versions."""
    there = read_json(path) if path.is_file() else {}
    if not isinstance(there, dict) or there.get("settings") != results["settings"]:
        return {}
    made, now = mapping_at(there, "manifest"), results["manifest"]
    if made.get("checkpoint") != now["checkpoint"] or made.get("versions") != now["versions"]:
        return {}
    if any(differences(mapping_at(made, "config"), now["config"], ("evaluation.modes",))):
        return {}
    return mapping_at(there, "receivers")
