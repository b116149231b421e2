"""What evaluations measure, and how tables name it: ways to read a text, sizes of it, what latents keep. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentwire.core.names import LATENT, LLMLINGUA, TEXT, TOKEN_BUDGET

ADAPTER_OF = {
    "text": None,
    "text_tuned": TEXT,
    "latent": LATENT,
    "token_budget": TOKEN_BUDGET,
    "no_context": TEXT,
    "embedding_replay": None,
    "embedding_anchor": None,
    "llmlingua": None,
    "llmlingua_text_tuned": TEXT,
    "llmlingua_tuned": LLMLINGUA,
    "kvpress": None,
    "kvpress_text_tuned": TEXT,
}
"""What a receiver reads, and with which of its LoRA adapters; None is the bare model."""
RIVAL_MODES = [mode for mode in ADAPTER_OF if mode.startswith(("llmlingua", "kvpress"))]
"""Those by other projects' methods, which an eval.json has only where they were asked for."""
SIZES = {"utf8": "UTF-8", "zstd": "zstd -19", "packed_ids": "token ids", "lm_bytes": "lossless by the sender's model"}
"""Forms of a text that a message's bytes are compared with."""
SIZE_COLUMNS = {kind: kind if kind.endswith("_bytes") else f"{kind}_bytes" for kind in SIZES}
"""What the rows of `latentwire rates` call them."""


def mode_label(mode: str, measured: Mapping[str, Any]) -> str:
    """What a mode is called in tables; one that was read without the LoRA of its own says so."""
    return mode if measured["tuned"] or ADAPTER_OF[mode] is None else f"{mode} (no LoRA)"


def baseline_for(latent: Mapping[str, Any]) -> str:
    """The text mode that measured latents are compared with: with LoRA, the text read with a LoRA tuned on it."""
    return "text_tuned" if latent["tuned"] else "text"


def baseline_of(latent: Mapping[str, Any], receiver: Mapping[str, Any]) -> str | None:
    """The same where it was measured of a receiver, else None."""
    mode = baseline_for(latent)
    return mode if receiver.get(mode) is not None else None


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
