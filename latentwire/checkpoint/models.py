"""Whether the receivers of two checkpoints stand on the same models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from latentwire.backbone.aliases import ALIASES
from latentwire.backbone.load import files_digest
from latentwire.checkpoint.hub import hub_name
from latentwire.config import Config

WEIGHTS = ("*.safetensors",)


def other_models(one: Config, other: Config) -> Iterator[tuple[str, str, str]]:
    """Receivers under whose name two configurations have different models: the name, and both models."""
    for name, model in one.model.chosen.items():
        theirs = other.model.chosen.get(name, model)
        if differ(model, theirs):
            yield name, model, theirs


def differ(one: str, other: str) -> bool:
    """Whether two names are certainly of different models: two Hub ids, or two folders or GGUF files that are here and
    hold other weights. What is elsewhere, or in another form, may be the same model."""
    if one == other:
        return False
    ids = [hub_name(Path(ALIASES[name].hub_id if name in ALIASES else name)) for name in (one, other)]
    if all(ids):
        return ids[0] != ids[1]
    forms = [Path(name).expanduser().is_dir() for name in (one, other)]
    digests = [files_digest(name, WEIGHTS) for name in (one, other)]
    return forms[0] == forms[1] and None not in digests and digests[0] != digests[1]
