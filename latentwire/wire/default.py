"""The codec of a configuration."""

from __future__ import annotations

from latentwire.config import Config
from latentwire.core.errors import ConfigError, WireError
from latentwire.wire.codecs import Codec, parse_codec


def default_codec(config: Config) -> Codec:
    """The codec that is measured and sent with unless another one is asked for."""
    try:
        return parse_codec(config.evaluation.codec)
    except WireError as error:
        raise ConfigError(f"evaluation.codec: {error}") from None
