"""Where LatentWire keeps what it makes once and uses often."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """$LATENTWIRE_CACHE, or latentwire under $XDG_CACHE_HOME or ~/.cache."""
    if own := os.environ.get("LATENTWIRE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentwire"
