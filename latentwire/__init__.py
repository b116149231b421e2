"""LatentWire: one compressed message that different language models can read."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentwire.model.receiver import Receiver
    from latentwire.model.sender import Sender
    from latentwire.wire.message import Wire

if sys.platform == "darwin":  # what MPS cannot do, the CPU does; torch looks at this only while it is imported
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__version__ = "0.1.0"
__all__ = ["Receiver", "Sender", "Wire"]

_HOMES = {
    "Receiver": "latentwire.model.receiver",
    "Sender": "latentwire.model.sender",
    "Wire": "latentwire.wire.message",
}


def __getattr__(name: str) -> Any:
    """The public classes, imported when they are asked for: the package itself loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
