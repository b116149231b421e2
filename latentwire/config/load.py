"""From files, overrides and flags to one checked `Config`. Precedence: file < --override < flag."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from latentwire.config.schema import Config
from latentwire.config.sections.base import KEPT, leaves, section_of
from latentwire.config.sections.latents import EncoderConfig
from latentwire.core.errors import ConfigError
from latentwire.core.json_files import read_object

T = TypeVar("T")
_BY_RECEIVER = ("model.receivers.", "deep_prefix.ranked.")
"""What comes behind these is a receiver's name, which may have dots."""
SHOWN = 200
"""Characters of a wrong value that an error quotes."""


def load_config(
    path: str | Path | None = None, overrides: Iterable[str] | None = None, flags: Mapping[str, Any] | None = None
) -> Config:
    """Read a JSON file (which may name another one under "extends"), then apply overrides and flags by dotted key."""
    values = read_config_file(Path(path)) if path else {}
    changes = parse_overrides(overrides)
    return config_from_dict(values, str(path or "defaults"), changes | dict(flags or {}))


def parse_overrides(texts: Iterable[str] | None) -> dict[str, Any]:
    """What "key=value" words change, by dotted key; of one that is given twice the latter counts."""
    return dict(map(parse_override, texts or []))


def parse_override(text: str) -> tuple[str, Any]:
    """The dotted key and the value of "key=value"; the value is JSON, or else plain text."""
    key, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"--override {text}: expected key=value, such as data.samples=64")
    return key.strip(), json_or_text(value)


def json_or_text(value: str) -> Any:
    """A value as it is typed: JSON, or else plain text."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def config_from_dict(values: Any, where: str, changes: Mapping[str, Any], *, kept: bool = False) -> Config:
    """Check a nested mapping with some dotted keys changed; errors name `where` and the dotted key.

    Who changes a stage's `epochs` and not its `max_steps` means these epochs, whatever limit the mapping holds; who
    changes LoRA's targets to those of the first layers means these layers; who changes the encoder to one that takes no
    layers means none. kept: as a run or checkpoint has it, see `is_kept`.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: a configuration is a JSON object, got {_short(values)}")
    values = json.loads(json.dumps(values))
    for dotted, value in lifting(changes).items():
        _set(values, dotted, value, where)
    try:
        config = Config.model_validate(values, context={KEPT: kept})
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_problem(error)}") from None
    if any(key.startswith("model.receivers") for key in changes):
        for name in ("llama_id", "qwen_id"):
            if getattr(config.model, name) and f"model.{name}" not in changes:
                raise ConfigError(
                    f"{where}: model.receivers: does nothing beside model.{name}, which is set and replaces it"
                )
    return config


def lifting(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes by dotted key, and what they lift of that which they come over: a limit in other words, or what was for
    another encoder."""
    stages = [key.removesuffix("epochs") for key in changes if re.fullmatch(r"curriculum\.\w+\.epochs", key)]
    lifted: dict[str, Any] = {f"{stage}max_steps": None for stage in stages}
    if "_firstN:" in str(changes.get("lora.targets")):
        lifted["lora.first_n"] = None
    if changes.get("encoder.type", "backbone") != "backbone":
        lifted["encoder.layers"] = EncoderConfig.model_fields["layers"].get_default()
    return lifted | dict(changes)


def some_receivers(known: Mapping[str, T], names: Sequence[str], where: str) -> dict[str, T]:
    """The named ones of some receivers, all where none is named; ConfigError, beginning with `where`, for another.

    A name may be cut short as long as one receiver alone begins so.
    """
    chosen = []
    for name in names or known:
        fitting = [name] if name in known else [other for other in known if other.startswith(name)]
        if len(fitting) != 1:
            several = f"several receivers that begin with {name!r}" if fitting else f"no receiver {name!r}"
            raise ConfigError(f"{where} has {several} (it has: {', '.join(known)})")
        chosen += fitting
    return {name: known[name] for name in chosen}


def read_config_file(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A JSON object from a file, over the one that it names under "extends"; ConfigError where there is none."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends itself")
    values = read_object(path, ConfigError)
    if isinstance(values.get("base"), str):  # an ablation's, relative to the file that names it
        values["base"] = str(path.parent / values["base"])
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: extends: expected a file name, got {base!r}")
    return _merge(read_config_file(path.parent / base, (*seen, path.resolve())), values)


def _merge(base: dict[str, Any], over: dict[str, Any], path: str = "") -> dict[str, Any]:
    """One mapping over another, which loses what is lifted by it. `path`: where both stand; keys of an ablation's runs
    are dotted themselves."""
    dotted = {key: key if "." in key else f"{path}{key}" for key in (*base, *over)}
    changes = {dotted[key]: value for key, value in over.items() if path != "sweep."}  # a sweep's are lists of values
    lifted = lifting(changes).keys() - changes.keys()
    merged = {key: value for key, value in base.items() if dotted[key] not in lifted}
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "receivers"
        merged[key] = _merge(merged[key], value, f"{path}{key}.") if both else value
    return merged


def _set(values: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    *sections, last = dotted.split(".", 2) if dotted.startswith(_BY_RECEIVER) else dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: {dotted}: {section} is not a section")
    values[last] = value


def first_problem(error: ValidationError, model: type[BaseModel] = Config) -> str:
    """The first problem in one line, with the dotted path, and how many more there are."""
    problems = error.errors()
    first, more = problems[0], len(problems) - 1
    dotted = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(dotted, [key for key, _ in leaves(model)], n=1)
        text = f"{dotted}: unknown key" + (f" (did you mean {close[0]}?)" if close else "")
        if close == [dotted]:
            text = f"{dotted}: a key with dots; in a file each section is an object that holds its keys"
    elif first["type"] == "value_error":  # a check of a section, or of the whole, names its keys itself
        section: type[BaseModel] | None = model
        for part in first["loc"]:
            section = section and section_of(section.model_fields.get(str(part)))
        join = "" if not dotted else "." if section else ": "
        text = f"{dotted}{join}{first['ctx']['error']}"
    else:
        text = f"{dotted}: {first['msg'][0].lower()}{first['msg'][1:]}, got {_short(first['input'])}"
    return text + (f" (and {more} more)" if more else "")


def _short(value: Any) -> str:
    """A value as Python writes it, or its beginning."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def changed_in(kept: Any, where: str, config: Config, but: Container[str] = ()) -> list[str]:
    """Dotted keys in which a kept configuration is another than this one, but for some keys and sections.

    An option that came later had its default then. ConfigError, beginning with `where`, for options that there are no
    more.
    """
    before = config_from_dict(kept, where, {}, kept=True).model_dump(mode="json")
    return sorted(differences(before, config.model_dump(mode="json"), but))


def same_config(kept: Any, config: Any, but: Container[str] = ()) -> bool:
    """Whether nothing is `changed_in` a kept configuration against another one, which may be kept too; False where
    there is none, or this version cannot read one of them."""
    try:
        now = config if isinstance(config, Config) else config_from_dict(config, "", {}, kept=True)
        return bool(kept) and not changed_in(kept, "", now, but)
    except ConfigError:
        return False


def differences(a: dict[str, Any], b: dict[str, Any], but: Container[str] = (), path: str = "") -> Iterator[str]:
    """Dotted keys whose values differ, but for some keys and sections."""
    for key in a.keys() | b.keys():
        dotted = f"{path}{key}"
        if dotted in but:
            continue
        one, other = a.get(key), b.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from differences(one, other, but, f"{dotted}.")
        elif one != other:
            yield dotted
