#!/usr/bin/env python
"""How much of a text baseline the latents keep: `--latent A/eval.json --text B/eval.json`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout that this script belongs to

from latentwire.cli.compare import main
from latentwire.cli.run import run_and_exit

if __name__ == "__main__":
    run_and_exit(main)
