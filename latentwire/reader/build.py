"""The reader that a configuration asks for."""

from __future__ import annotations

from latentwire.backbone.lm import LanguageModel
from latentwire.config.schema import Config
from latentwire.reader.adapter import EmbeddingReader
from latentwire.reader.base import Reader
from latentwire.reader.slots import SlotReader


def build_reader(lm: LanguageModel, config: Config, head_len: int, receiver: str) -> Reader:
    """Slots, or with features.use_deep_prefix off embeddings, for a receiver behind a head of so many tokens."""
    if not config.features.use_deep_prefix:
        return EmbeddingReader(lm, config.encoder.d_z, head_len, config.adapter)
    return SlotReader.of(lm.anatomy, config, head_len, receiver)
