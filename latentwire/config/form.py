"""What of a configuration makes a run another one, and what the tensors of its checkpoints mean by it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from latentwire.config.load import differences
from latentwire.config.schema import Config
from latentwire.config.sections.running import EvaluationConfig
from latentwire.core.hashing import stable_hash

SAME_FORM = (
    "encoder",
    "queries",
    "byte",
    "latent_refiner",
    "adapter",
    "anchor",
    "features",
    "lora.r",
    "lora.alpha",
    "lora.targets",
    "lora.first_n",
    "deep_prefix",
    "prefix",
    "latent_adapters",
    "coprocessor",
)
"""What checkpoints must agree on to be averaged, and a checkpoint and a run that starts from it."""
NOT_KEPT = {"features.use_gist_head"}
"""What only training has: no checkpoint has tensors of it."""
MAY_CHANGE = {
    *(f"checkpoint.{key}" for key in ("runs_dir", "every_steps", "keep", "tuned_cache")),
    *(f"system.{key}" for key in ("threads", "require_cuda", "device_map", "sequential_models", "grad_ckpt")),
    *(f"evaluation.{key}" for key in EvaluationConfig.model_fields if key != "llmlingua_model"),  # a LoRA hangs on it
    "data.eval_path",
    "diagnostics",
}
"""Where a run writes and what it evaluates may change while it goes on."""


def run_id(config: Config) -> str:
    """Eight digits that tell runs of different configurations apart."""
    own = config.model_dump(mode="json")
    for section, _, key in (dotted.partition(".") for dotted in MAY_CHANGE):
        (own[section] if key else own).pop(key or section)
    return stable_hash(own)[:8]


def unlike_forms(one: Config, other: Config) -> Iterator[tuple[str, Any, Any]]:
    """What keeps two configurations' tensors from meaning the same: dotted keys, with the values of both.

    Options of LoRA count where the first one has tensors of it, which the other would go on with.
    """
    both_have_one = one.encoder.companion is not None and other.encoder.companion is not None
    has_lora = one.features.use_lora or one.features.use_sender_lora
    unlike = differences(one.model_dump(mode="json"), other.model_dump(mode="json"))
    for dotted in sorted({".".join(key.split(".")[:2]) for key in unlike}):
        if dotted == "encoder.model" or (dotted == "encoder.companion" and both_have_one):
            continue  # the same model may lie elsewhere
        if dotted in NOT_KEPT or dotted.endswith(".dropout") or (dotted.startswith("lora.") and not has_lora):
            continue  # no tensor means anything else by it
        if any(dotted == key or dotted.startswith(f"{key}.") for key in SAME_FORM):
            section, key = dotted.split(".")
            yield dotted, getattr(getattr(one, section), key), getattr(getattr(other, section), key)
