"""Learning-rate schedules, as factors of the peak rate."""

from __future__ import annotations

import math

from latentwire.config.schema import OptimizerConfig


def lr_factor(config: OptimizerConfig, step: int, total: int) -> float:
    """Factor at a step counted from 0: linear warm-up, then the decay that the configuration names."""
    warmup = min(config.warmup_steps, max(1, total // 10))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    low = config.min_lr_ratio
    if config.schedule == "linear":
        return 1.0 - (1.0 - low) * progress
    if config.schedule == "cosine":
        return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
