"""Seeds."""

from __future__ import annotations

import random


def seed_everything(seed: int) -> None:
    """Seed Python's and torch's generators."""
    import torch

    random.seed(seed)
    torch.manual_seed(seed)
