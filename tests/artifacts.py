"""Results as an evaluation writes them, with made-up figures, for what reads them."""

from __future__ import annotations

from typing import Any


def measured(f1: float, tuned: bool = False) -> dict[str, Any]:
    """One mode's measures."""
    return {
        "f1": f1,
        "f1_ci": [f1 - 0.05, f1 + 0.05],
        "em": f1 / 2,
        "em_ci": [f1 / 2 - 0.05, f1 / 2 + 0.05],
        "first_token_acc": f1 / 3,
        "nll_per_token": 2 - f1,
        "latency_s": None,
        "tuned": tuned,
    }


def results(config: dict[str, Any] | None = None, **receivers: dict[str, Any]) -> dict[str, Any]:
    """What eval.json holds; receivers: name -> its measured modes."""
    modes = ("text", "text_tuned", "latent", "token_budget", "no_context", "embedding_replay", "embedding_anchor")
    cost = {
        "positions": {"text": 100.0, "latent": 40.0},
        "compression": 2.5,
        "bytes": {"wire": 900.0, "utf8": 600.0, "zstd": 350.0, "packed_ids": 250.0},
    }
    return {
        "schema": 1,
        "manifest": {"config": config, "git": {"commit": "0123456789", "dirty": False}, "cpu": "a processor"},
        "dataset": "facts",
        "samples": 12,
        "passages": 2,
        "receivers": {name: {m: own.get(m) for m in modes} | cost for name, own in receivers.items()},
        "joint": None,
    }
