"""Optional parts of a receiver, each a folder with one life cycle, in one dict."""

from latentwire.backbone.lm import LanguageModel
from latentwire.config.schema import Config
from latentwire.features.base import ReadingFeature
from latentwire.features.coprocessor import Coprocessor
from latentwire.features.gist_head import GistHead
from latentwire.features.latent_adapters import LatentAdapters
from latentwire.features.prefix import Prefix

FEATURES: dict[str, type[ReadingFeature]] = {
    "prefix": Prefix,
    "coprocessor": Coprocessor,
    "gist_head": GistHead,
    "latent_adapters": LatentAdapters,
}
"""Reading features by name, in the order in which they extend a context: each is on where `features.use_<name>` is."""


def build_features(config: Config, lm: LanguageModel) -> dict[str, ReadingFeature]:
    """The reading features that a configuration switches on, for one receiver's model."""
    return {name: kind(config, lm) for name, kind in FEATURES.items() if getattr(config.features, f"use_{name}")}


__all__ = ["FEATURES", "ReadingFeature", "build_features"]
