"""Latent dropout: which latents of a message a receiver gets to read at a step."""

from __future__ import annotations

import random

from latentwire.config.sections.latents import LatentsConfig


def keep_share(config: LatentsConfig, progress: float) -> float:
    """The share of latents that is kept, `progress` (0 to 1) through the stage."""
    return config.keep_start + (config.keep_end - config.keep_start) * progress**config.keep_power


def keep_latents(count: int, progress: float, config: LatentsConfig, rng: random.Random) -> list[int]:
    """Indices of the latents that are kept of `count`, in order, at least one.

    A prefix of a length that is drawn for each message puts the most useful of a text into its first latents, so that a
    message may later be cut short: nested dropout (Rippel et al. 2014, arXiv 1402.0915).
    """
    least = max(1, round(keep_share(config, progress) * count))
    if config.keep_which == "prefix":
        return list(range(rng.randint(least, count)))
    return sorted(rng.sample(range(count), least))
