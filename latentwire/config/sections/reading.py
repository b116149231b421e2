"""How latents are read: the two readers, and what stands around the wire."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from latentwire.config.sections.base import Section, flag

ASKED = "{question}"
"""Stands for the question in anchor.question."""


class DeepPrefixConfig(Section):
    """The slot reader (features.use_deep_prefix). Its length is the message's: encoder.window, encoder.latent_len."""

    pattern: Literal["interleaved", "strided"] = Field(
        "interleaved",
        description="Which token of its window a KV head starts from: another one per head, or the last one in all.",
    )
    ranked: dict[str, PositiveInt] = Field(
        {},
        description="Receivers whose KV heads take tokens in the order of how much answers hang on each head, and how "
        "many of a window they share: the few heads that find answers then show a window's first tokens.",
        json_schema_extra=flag(None),
    )
    hidden: int = Field(
        256,
        ge=0,
        description="Width of the MLP beside the linear generator; 0 leaves it out.",
        json_schema_extra=flag("generator_hidden"),
    )
    neighbours: int = Field(
        0,
        ge=0,
        le=8,
        description="Latents on each side of its own that the MLP looks at too.",
        json_schema_extra=flag("generator_neighbours"),
    )
    rank: PositiveInt | None = Field(
        None,
        description="Rank of the linear generator, where it should be less than full.",
        json_schema_extra=flag("generator_rank"),
    )
    dropout: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Dropout on the latents before the generator.",
        json_schema_extra=flag("generator_dropout"),
    )

    @model_validator(mode="after")
    def _has_mlp(self) -> DeepPrefixConfig:
        if self.neighbours and not self.hidden:
            raise ValueError("neighbours: the MLP looks at them, and hidden is 0")
        return self


class AdapterConfig(Section):
    """The embedding reader (features.use_deep_prefix off)."""

    hidden: int = Field(
        256,
        ge=0,
        description="Width of the MLP beside the linear adapter; 0 leaves it out.",
        json_schema_extra=flag("adapter_hidden"),
    )
    calibration: Literal["none", "embed_rms", "fixed", "train_stats"] = Field(
        "embed_rms", description="What sets the RMS of the vectors that the receiver reads."
    )
    fixed_rms: PositiveFloat = Field(1.0, description="The RMS for calibration='fixed'.")
    color: Literal["none", "diagonal", "full"] = Field(
        "none",
        description="Give the vectors the mean and variance (diagonal) or covariance (full) of the token embeddings.",
        json_schema_extra=flag("adapter_color"),
    )
    gain: PositiveFloat = Field(
        1.0, description="Factor on the vectors after calibration.", json_schema_extra=flag("adapter_gain")
    )
    learn_gain: bool = Field(
        False, description="Train the gain end to end, from that start.", json_schema_extra=flag("learn_adapter_gain")
    )

    @model_validator(mode="after")
    def _has_effect(self) -> AdapterConfig:
        if "fixed_rms" in self.changed and self.calibration != "fixed":
            raise ValueError(f"fixed_rms: adapter.calibration is {self.calibration!r} and not 'fixed'")
        return self


class AnchorConfig(Section):
    """What stands around the wire in the receiver's prompt. Everything here is counted as positions."""

    text: str = Field(
        "", description="Text between the context and the question.", json_schema_extra=flag("anchor_text")
    )
    question: str = Field(
        f"\nQuestion: {ASKED}\nAnswer:",
        description=f"How a question is put behind that, {ASKED} in its place. Fewer words of it are fewer positions.",
        json_schema_extra=flag("anchor_question"),
    )
    bos: Literal["before", "after", "none"] = Field(
        "before",
        description="The receiver's BOS token: before the context, between context and anchor, or nowhere "
        "(true and false stand for before and none).",
    )
    chat_template: bool = Field(False, description="Wrap the question in the receiver's chat template.")

    @field_validator("bos", mode="before")
    @classmethod
    def _bos_as_truth(cls, value: Any) -> Any:
        return {"true": "before", "false": "none"}.get(str(value).lower(), value)

    @field_validator("question")
    @classmethod
    def _asks_once(cls, value: str) -> str:
        if value.count(ASKED) != 1:
            raise ValueError(f"{ASKED} has to stand in it once")
        return value

    @model_validator(mode="after")
    def _one_bos(self) -> AnchorConfig:
        if self.chat_template and self.bos != "before":
            raise ValueError("bos: anchor.chat_template places BOS itself")
        return self
