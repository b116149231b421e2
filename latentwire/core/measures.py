"""What evaluations measure, and how tables name it: ways to read a text, sizes of it, what latents keep. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentwire.core.names import LATENT, LLMLINGUA, TEXT, TOKEN_BUDGET

MODES = {
    "text": None,
    "text_tuned": TEXT,
    "latent": LATENT,
    "token_budget": TOKEN_BUDGET,
    "no_context": TEXT,
    "embedding_replay": None,
    "embedding_anchor": None,
}
"""What a receiver reads, and with which of its LoRA adapters; None is the bare model."""
RIVALS = {
    "llmlingua": None,
    "llmlingua_text_tuned": TEXT,
    "llmlingua_tuned": LLMLINGUA,
    "kvpress": None,
    "kvpress_text_tuned": TEXT,
}
"""The same of other projects' methods, which an eval.json has only where they were asked for."""
EVERY_MODE = MODES | RIVALS
SIZES = {"utf8": "UTF-8", "zstd": "zstd -19", "packed_ids": "token ids", "lm_bytes": "lossless by the sender's model"}
"""Forms of a text that a message's bytes are compared with."""
TEXT_MODES = ("text_tuned", "text")
"""In this order: a receiver with LoRA is compared with the text read with a LoRA tuned on the same data."""


def mode_label(mode: str, measured: Mapping[str, Any]) -> str:
    """What a mode is called in tables; one that was read without the LoRA of its own says so."""
    return mode if measured["tuned"] or EVERY_MODE[mode] is None else f"{mode} (no LoRA)"


def baselines_for(latent: Mapping[str, Any]) -> tuple[str, ...]:
    """The text modes that measured latents may be compared with, the fairest first."""
    return TEXT_MODES if latent["tuned"] else TEXT_MODES[1:]


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
    said = f"of {kept['of']}, latents keep {' and '.join(shares) or 'no F1'}"
    if kept["nll_per_token"] is None:
        return said
    low, high = kept["nll_per_token_ci"]
    return f"{said}, at {kept['nll_per_token']:.2f} [{low:.2f}, {high:.2f}] times its NLL"
