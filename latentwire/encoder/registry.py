"""Encoders by their name in `encoder.type`."""

from __future__ import annotations

from latentwire.config.schema import Config
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.encoder.base import Encoder
from latentwire.encoder.byte import ByteEncoder
from latentwire.encoder.simple_st import SimpleSTEncoder
from latentwire.encoder.stq import STQEncoder

ENCODERS: dict[str, type[Encoder]] = {
    "backbone": BackboneEncoder,
    "byte": ByteEncoder,
    "simple-st": SimpleSTEncoder,
    "stq": STQEncoder,
}


def build_encoder(config: Config, device: str) -> Encoder:
    """The encoder that the configuration asks for, with its frozen model, on a device."""
    return ENCODERS[config.encoder.type].load(config, device)
