"""Learning-rate schedules, as factors of the peak rate."""

from __future__ import annotations

import math

from latentwire.config.sections.training import OptimizerConfig


def lr_factor(config: OptimizerConfig, step: int, total: int) -> float:
    """Factor at a step counted from 0: linear warm-up, then the decay that the configuration names.

    restarts: cosine decay, begun anew `cycles` times (SGDR, Loshchilov & Hutter 2017, arXiv 1608.03983). wsd: constant,
    then linear decay over the last `decay_share` of the steps (warmup-stable-decay, Hu et al. 2024, arXiv 2404.06395).
    """
    warmup = min(config.warmup_steps, max(1, total // 10))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "restarts" and progress < 1.0:
        progress = progress * config.cycles % 1.0
    if config.schedule == "wsd":
        progress = max(0.0, 1.0 - (1.0 - progress) / config.decay_share)
    low = config.min_lr_ratio
    if config.schedule in ("cosine", "restarts"):
        return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - (1.0 - low) * progress
