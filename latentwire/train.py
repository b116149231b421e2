"""Thin entry point: `python latentwire/train.py ...` and `from latentwire.train import main`."""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: its own folder must not shadow top-level packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from latentwire.cli.run import run_and_exit
from latentwire.cli.train import main

__all__ = ["main"]

if __name__ == "__main__":
    run_and_exit(main)
