"""What latents keep of a text: which reading of it they are compared with, and how that is said. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BASELINES = ("text_tuned", "text")
"""In this order: a receiver with LoRA is compared with the text read with a LoRA tuned on the same data."""


def baselines_for(latent: Mapping[str, Any]) -> tuple[str, ...]:
    """The text modes that measured latents may be compared with, the fairest first."""
    return BASELINES if latent["tuned"] else BASELINES[1:]


def baseline_of(latent: Mapping[str, Any], receiver: Mapping[str, Any]) -> str | None:
    """The text mode, among those that were measured of a receiver, that its latents are compared with."""
    return next((mode for mode in baselines_for(latent) if receiver[mode] is not None), None)


def kept_in_words(kept: Mapping[str, Any]) -> str:
    """What latents keep of a text: ratios of F1 and EM, and how many times its NLL they have, with their intervals."""
    shares = [
        f"{kept[key]:.0%} [{kept[f'{key}_ci'][0]:.0%}, {kept[f'{key}_ci'][1]:.0%}] of {label}"
        for key, label in (("f1", "F1"), ("em", "EM"))
        if kept[key] is not None
    ]
    times = f"{kept['nll_per_token']:.2f} [{kept['nll_per_token_ci'][0]:.2f}, {kept['nll_per_token_ci'][1]:.2f}]"
    return f"of {kept['of']}, latents keep {' and '.join(shares) or 'no F1'}, at {times} times its NLL"
