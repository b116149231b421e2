"""The receivers, and what is asked of them."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from latentwire.config.sections.base import Section, flag
from latentwire.core.names import PREDICTION_KEYS, PREDICTIONS

Dataset = Literal["squad", "squad_v2", "hotpot", "facts"]


def check_name(name: str) -> None:
    """ValueError where a receiver cannot be called so."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"{name!r} is not a plain name (letters, digits, '.', '_', '-')")
    if name in PREDICTION_KEYS:
        raise ValueError(f"{name!r} is what a line of {PREDICTIONS} has under that name; choose another one")


class ModelConfig(Section):
    """The receivers and how they are loaded."""

    receivers: dict[str, str] = Field(
        {"smollm2-135m": "smollm2-135m", "gemma3-270m": "gemma3-270m"},
        description="Receiver name -> model: built-in alias, Hub id, local folder or .gguf file.",
        json_schema_extra=flag(None),
    )
    llama_id: str | None = Field(None, description="Shorthand: a receiver named 'llama'. Replaces model.receivers.")
    qwen_id: str | None = Field(None, description="Shorthand: a receiver named 'qwen'. Replaces model.receivers.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Compute and frozen-weight type; auto: bfloat16 where the machine multiplies it natively.",
    )
    attn_implementation: Literal["auto", "eager", "sdpa"] = Field(
        "auto", description="auto: eager on CPU (its bf16 backward is the faster one there), sdpa elsewhere."
    )
    load_4bit: bool = Field(False, description="Load receivers in 4 bits with bitsandbytes (CUDA only).")

    @field_validator("receivers")
    @classmethod
    def _named(cls, value: dict[str, str]) -> dict[str, str]:
        if not value:
            raise ValueError("at least one receiver is needed")
        for name in value:
            check_name(name)
        return value

    @property
    def chosen(self) -> dict[str, str]:
        """Receiver name -> model: the shorthands, where given, replace the mapping."""
        short = {"llama": self.llama_id, "qwen": self.qwen_id}
        return {name: value for name, value in short.items() if value} or dict(self.receivers)


class DataConfig(Section):
    """Questions on passages, and plain text for the closed-form fit."""

    dataset: Dataset = Field("facts", description="Which kind of data.")
    data_path: str | list[str] | None = Field(
        None, description="Training file(s) in the dataset's original JSON format; without it, the `datasets` library."
    )
    eval_path: str | None = Field(
        None, description="Held-out file in the same format; without it, the validation split."
    )
    text_path: str | None = Field(
        None, description="Plain text, one paragraph a line: more windows for the closed form."
    )
    cloze: NonNegativeInt = Field(
        0, description="Cloze questions a paragraph of data.text_path, which are trained on like the dataset's own."
    )
    renamed: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of the training passages that come once more, with other names and numbers in passage and "
        "questions: what a model knows by heart does not help there.",
    )
    hotpot_context: Literal["supporting", "all"] = Field(
        "supporting", description="hotpot: only the paragraphs that hold supporting facts, or the distractors as well."
    )
    samples: PositiveInt | None = Field(None, description="Use at most so many training questions.")
    max_context_tokens: PositiveInt = Field(
        220,
        description="Training passages with more sender tokens are left out, and longer texts take several messages.",
    )
    questions_per_passage: PositiveInt = Field(5, description="Most questions packed behind one encoded passage.")
    seed: int = Field(
        0, description="Seed of sampling and of the facts generator.", json_schema_extra=flag("data_seed")
    )
