"""A checkpoint to pass on: what goes with it, its history, and nothing of the machine that it was made on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from latentwire.checkpoint.hub import fetch_beside
from latentwire.checkpoint.index import find_checkpoint, load_config_of
from latentwire.checkpoint.parts import State, adapter_stem, reader_stem
from latentwire.checkpoint.tensors import read_info
from latentwire.config.flags import options
from latentwire.config.load import config_from_dict, some_receivers
from latentwire.config.sections.inputs import ModelConfig
from latentwire.core.errors import CheckpointError, ConfigError
from latentwire.core.json_files import read_json
from latentwire.core.names import ADAPTERS, CARD, CODEBOOKS, EXPORTED_LOG, INDEX, LOG, ORIGIN, RESULTS
from latentwire.diagnostics.log import read_log

HERE = {
    "checkpoint": ("runs_dir", "tuned_cache", "init_from", "every_steps"),
    "system": ("device", "threads", "require_cuda", "device_map", "sequential_models"),
}
"""Options of a run that say where and on what it was made; others have another place and another machine."""
WORDS = {
    name
    for option in options()
    if option.dotted in ("anchor.text", "anchor.question", "evaluation.anchor_text")
    for name in (option.dotted, f"--{option.flag}")
}
"""Options whose value is words of a prompt, and no path even where it begins with "/": their keys and flags."""


def measured_on(before: Mapping[str, Any], files: Mapping[str, Any]) -> bool:
    """Whether an evaluation of the files `before` is one of `files`: the same, and perhaps codebooks since then."""
    since = {name for name in files if name not in before}
    same = all(files.get(name) == entry for name, entry in before.items())
    return bool(before) and same and all(name.startswith(CODEBOOKS) for name in since)


def only_some(state: State, info: dict[str, Any], names: list[str], where: str) -> tuple[State, dict[str, Any]]:
    """A checkpoint's tensors and index without the receivers that are not named.

    ConfigError, which begins with `where`, for one that it has not, and where the sender sets latents aside for each
    receiver: which ones are whose hangs on all of them.
    """
    config = config_from_dict(info["config"], where, {}, kept=True)
    chosen = some_receivers(config.model.chosen, names, where)
    if config.encoder.latent_private_len:
        raise ConfigError(f"{where} sets latents aside for each of its receivers, so all of them go together")
    others = set(config.model.chosen) - set(chosen)
    gone = {adapter_stem(name, adapter) for name in others for adapter in ADAPTERS}
    kept = {stem: tensors for stem, tensors in state.items() if stem not in gone}
    has_lora = any(key.startswith("lora.") for name in chosen for key in kept[reader_stem(name)])
    curriculum = info["config"]["curriculum"]
    ranked = {name: count for name, count in config.deep_prefix.ranked.items() if name in chosen}
    changes = {
        "model": _with_receivers(info["config"]["model"], chosen),
        "features": info["config"]["features"] | {"use_lora": has_lora},
        "curriculum": curriculum
        | {"train_only": None, "closed_form": curriculum["closed_form"] | {"companion_for": None}},
        "deep_prefix": info["config"]["deep_prefix"] | {"ranked": ranked},
    }
    return kept, info | {"config": info["config"] | changes}


def _with_receivers(model: Mapping[str, Any], receivers: Mapping[str, str]) -> dict[str, Any]:
    """The section `model` with these receivers, and no shorthand that would replace them."""
    return {**model, "receivers": dict(receivers), "llama_id": None, "qwen_id": None}


def check_target(out: Path, source: Path) -> None:
    """CheckpointError where an export would take the place of anything but an earlier one."""
    if not out.exists():
        return
    if not out.is_dir():
        raise CheckpointError(f"--out: {out} is a file; an export is a folder")
    if out.resolve() in (source.resolve(), *source.resolve().parents):
        raise CheckpointError(f"--out: {out} holds the checkpoint that is read; name another folder")
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    own = {INDEX, CARD, RESULTS, EXPORTED_LOG, *read_info(out)["files"]} if INDEX in there else set()
    if foreign := sorted(there - own):
        raise CheckpointError(f"--out: {out} holds {foreign[0]}, which is no part of an export; name another folder")


def lineage(folder: Path) -> list[Path]:
    """The checkpoints that led to one, itself the last: those that its run and theirs started from, as far as they are
    still what they were."""
    start, note = load_config_of(folder).checkpoint.init_from, folder.parent / ORIGIN
    if not (start and note.is_file()):
        return [folder]
    try:
        origin = find_checkpoint(start)
        unchanged = read_info(origin)["files"] == read_json(note)
    except CheckpointError:
        unchanged = False
    return [*lineage(origin), folder] if unchanged else [folder]


def history(folder: Path) -> list[dict[str, Any]]:
    """What is known of the runs that made a checkpoint, its own last: an exported one tells of earlier ones itself."""
    info = read_info(folder)
    return [*info.get("earlier", []), info["manifest"]]


def histories(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """What is known of the runs that made any of these checkpoints, each once."""
    known: list[dict[str, Any]] = []
    for made in (made for folder in runs for made in history(folder)):
        if made not in known:
            known.append(made)
    return known


def training_log(runs: Sequence[Path], last: Path | None) -> list[dict[str, Any]]:
    """The records of the runs that made these checkpoints, each once and to six digits; those of all but the last one's
    own run are named by its number in `histories`."""
    known, records, seen = histories(runs), [], set()
    for folder in runs:
        with suppress(CheckpointError):  # without a log it is a checkpoint all the same
            fetch_beside(folder, EXPORTED_LOG)
        log = next((path for path in (folder / EXPORTED_LOG, folder.parent / LOG) if path.is_file()), None)
        number = known.index(history(folder)[-1]) + 1
        for whole in read_log(log) if log else []:
            row = rounded(whole)
            named = row["stage"].startswith("run ")  # in an exported log, which others may hold as well
            if (key := (None if named else log, json.dumps(row))) in seen:
                continue
            seen.add(key)
            records.append(row if named or folder == last else row | {"stage": f"run {number}: {row['stage']}"})
    return records


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its numbers to six digits."""
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in row.items()}


def portable(info: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's index with file names in place of this machine's paths, and without the options in HERE.

    The held-out file is left out: an evaluation names its own. Receivers are all in model.receivers, where whoever uses
    the checkpoint names models of their own.
    """
    config = _named(info["config"])
    config["model"] = _with_receivers(config["model"], ModelConfig.model_validate(config["model"]).chosen)
    config["data"]["eval_path"] = None
    for section, keys in HERE.items():
        for key in keys:
            config[section].pop(key, None)
    out = info | {"config": config}
    if "manifest" in info:
        manifest = info["manifest"]
        known = {"config": config} if manifest.get("config") else {}
        out["manifest"] = manifest | {"command": _command(manifest["command"])} | known
    if "earlier" in info:
        out["earlier"] = [{"command": _command(made["command"]), "git": made["git"]} for made in info["earlier"]]
    return out


def _command(words: Sequence[str]) -> list[str]:
    return [_named(word, at) for at, word in pairwise(["", *words])]


def _named(value: Any, at: str = "") -> Any:
    """Paths of this machine, anywhere in a JSON value or a word of a command, by their last part; the project's own
    stay as they are. `at`: the dotted key where it stands, or the word in front of it."""
    if at in WORDS:
        return value
    if isinstance(value, dict):
        return {key: _named(item, f"{at}.{key}" if at else key) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item) for item in value]
    if not isinstance(value, str):
        return value
    key, sign, rest = value.partition("=")
    if sign and "/" not in key:  # an override, or an option with its value
        return f"{key}={_named(rest, key)}"
    if value.startswith(("{", "[")):
        with suppress(ValueError):
            return json.dumps(_named(json.loads(value), at))
    parts = [value] if _exists(value) else value.split(",")
    return ",".join(Path(part).name if _is_path(part) else part for part in parts)


def _is_path(word: str) -> bool:
    """Whether a word is a path that says something of this machine."""
    own = word.startswith(("configs/", "checkpoints/"))
    return "/" in word and not own and (word.startswith(("/", "./", "../", "~")) or _exists(word))


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except (OSError, ValueError):  # longer than any path, or with a NUL in it
        return False
