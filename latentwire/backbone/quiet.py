"""Transformers, called without its progress bars and notices, and what it raises for bad files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

BAD_FILES = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError)
"""What Transformers, the tokenizers and safetensors raise for files that are missing, damaged or of another kind."""


def quietly(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call without Transformers' progress bars and notices: what matters is said in our own words."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        return call(*args, **kwargs)
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
