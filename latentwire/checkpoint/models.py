"""Whether two checkpoints stand on the same models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from latentwire.backbone.aliases import hub_id
from latentwire.backbone.load import files_digest
from latentwire.checkpoint.hub import hub_name
from latentwire.config import Config


def other_models(one: Config, other: Config) -> Iterator[tuple[str, str, str]]:
    """Dotted keys under which two configurations name different models, with both: receivers, sender and companion."""
    a, b = _models(one), _models(other)
    yield from ((key, a[key], b[key]) for key in a if key in b and differ(a[key], b[key]))


def _models(config: Config) -> dict[str, str]:
    named = {f"model.receivers.{name}": model for name, model in config.model.chosen.items()}
    named["encoder.model"] = config.encoder.model
    return named | ({"encoder.companion": config.encoder.companion} if config.encoder.companion else {})


def differ(one: str, other: str) -> bool:
    """Whether two names are certainly of different models: two Hub ids, two GGUF files that are here and are not the
    same, or two folders with other weights, in however many files these are. What is elsewhere, or in another form, may
    be the same model."""
    if one == other:
        return False
    ids = [hub_name(Path(hub_id(name))) for name in (one, other)]
    if all(ids):
        return ids[0] != ids[1]
    a, b = (Path(name).expanduser() for name in (one, other))
    if a.is_file() and b.is_file():
        return files_digest(one) != files_digest(other)
    return _other_weights(_tensors(a), _tensors(b))


def _tensors(folder: Path) -> dict[str, Path]:
    """The tensors of a model's folder, each with its file; none where it is not here or cannot be read."""
    found: dict[str, Path] = {}
    with suppress(SafetensorError, OSError):
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        return found
    return {}


def _other_weights(one: Mapping[str, Path], other: Mapping[str, Path]) -> bool:
    """Whether some tensor has another shape, or the same type and other numbers; all, where none has the same name."""
    shared = [name for name in one if name in other]
    for name in shared:
        with safe_open(one[name], "pt") as first, safe_open(other[name], "pt") as second:
            a, b = first.get_slice(name), second.get_slice(name)
            if a.get_shape() != b.get_shape():
                return True
            if a.get_dtype() == b.get_dtype() and not torch.equal(first.get_tensor(name), second.get_tensor(name)):
                return True
    return bool(one and other) and not shared
