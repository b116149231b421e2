"""Optional parts of a receiver, each a folder with one life cycle, behind one registry."""

from latentwire.features import coprocessor, gist_head, latent_adapters, prefix
from latentwire.features.base import FEATURES, ReadingFeature, build_features

__all__ = ["FEATURES", "ReadingFeature", "build_features", "coprocessor", "gist_head", "latent_adapters", "prefix"]
