"""Whether two checkpoints stand on the same models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from latentwire.backbone.aliases import ALIASES
from latentwire.backbone.load import files_digest
from latentwire.checkpoint.hub import hub_name
from latentwire.config import Config

WEIGHTS = ("*.safetensors",)


def other_models(one: Config, other: Config) -> Iterator[tuple[str, str, str]]:
    """Dotted keys under which two configurations name different models, with both: receivers, sender and companion."""
    a, b = _models(one), _models(other)
    yield from ((key, a[key], b[key]) for key in a if key in b and differ(a[key], b[key]))


def _models(config: Config) -> dict[str, str]:
    named = {f"model.receivers.{name}": model for name, model in config.model.chosen.items()}
    named["encoder.model"] = config.encoder.model
    return named | ({"encoder.companion": config.encoder.companion} if config.encoder.companion else {})


def differ(one: str, other: str) -> bool:
    """Whether two names are certainly of different models: two Hub ids, or two folders or GGUF files that are here and
    hold other weights. What is elsewhere, or in another form, may be the same model."""
    if one == other:
        return False
    ids = [hub_name(Path(ALIASES[name].hub_id if name in ALIASES else name)) for name in (one, other)]
    if all(ids):
        return ids[0] != ids[1]
    if Path(one).expanduser().is_dir() != Path(other).expanduser().is_dir():
        return False
    digests = [_weights(name) for name in (one, other)]
    return None not in digests and digests[0] != digests[1]


def _weights(name: str) -> str | None:
    """A hash of the weights in a folder or GGUF file; None where there are none here."""
    found = Path(name).expanduser()
    return files_digest(name, WEIGHTS) if found.is_file() or any(found.glob(WEIGHTS[0])) else None
