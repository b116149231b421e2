"""Passages and their questions, from files, from the `datasets` library, or invented. No torch."""

from latentwire.data.example import data_fingerprint
from latentwire.data.load import load_passages, load_texts

__all__ = ["data_fingerprint", "load_passages", "load_texts"]
