"""Configuration: one schema for files, overrides, flags and reference. No torch."""

from latentwire.config.load import config_from_dict, load_config, some_receivers
from latentwire.config.schema import Config

__all__ = ["Config", "config_from_dict", "load_config", "some_receivers"]
