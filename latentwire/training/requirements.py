"""What a run asks of its configuration beyond the schema. No torch.

The schema allows it all, since a finished checkpoint keeps its run's configuration without the place it started from.
"""

from __future__ import annotations

from latentwire.config import Config
from latentwire.core.errors import ConfigError
from latentwire.data.load import check_source


def check_requirements(config: Config) -> None:
    """ConfigError or DataError where a configuration alone tells that no run can begin with it."""
    check_source(config.data, "train")
    if config.evaluation.samples:
        check_source(config.data, "validation")
    if config.curriculum.train_only is not None and not config.checkpoint.init_from:
        raise ConfigError("curriculum.train_only: needs checkpoint.init_from, where all the rest comes from")
    if config.evaluation.codec != Config().evaluation.codec:
        _check_codec(config)


def _check_codec(config: Config) -> None:
    from latentwire.wire.codecs import LearnedCodec  # takes longer to load than all of the above
    from latentwire.wire.default import default_codec

    codec = default_codec(config)
    if config.checkpoint.init_from or not config.evaluation.samples:  # which codebooks there are, is seen there
        return
    if isinstance(codec, LearnedCodec) and codec.name not in config.codec.learned:
        raise ConfigError(f"evaluation.codec: {codec.name!r} needs a codebook, and there will be none here")
