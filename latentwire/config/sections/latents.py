"""How a text becomes latents."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from latentwire.config.sections.base import Attending, Section, Share, flag, is_kept

NEEDS = {
    "keep_by": "keep",
    "keep_from": "keep",
    "keep_order": "keep",
    "companion_layers": "companion",
    "companion_d_z": "companion",
}
"""Keys of the encoder that mean nothing without another one."""


class EncoderConfig(Section):
    """The sender: text to latents.

    backbone: window features of a pretrained LM, then one linear map. The others make their latents from learned
    queries (section queries): stq: queries that attend to a pretrained model's hidden states; simple-st: one sentence
    embedding, the mean of those states, spread over the queries; byte: queries that attend to a transformer over the
    text's bytes.
    """

    type: Literal["backbone", "byte", "simple-st", "stq"] = Field(
        "backbone", description="How latents are made.", json_schema_extra=flag("encoder_type")
    )
    model: str = Field(
        "smollm2-135m",
        description="Sender model: a causal LM; for simple-st and stq also an encoder such as BERT. byte takes only "
        "its tokenizer, to count tokens and find windows.",
        json_schema_extra=flag("sender_id"),
    )
    layers: list[NonNegativeInt] = Field(
        [0, 10, 20],
        min_length=1,
        description="Hidden states that backbone takes: 0 is the embedding, k the output of layer k.",
        json_schema_extra=flag("encoder_layers"),
    )
    window: PositiveFloat = Field(
        8, description="Sender tokens behind one latent; with keep also a fraction: then windows differ by one token."
    )
    bidirectional: bool = Field(
        False,
        description="Whether the tokens of a text see those behind them too in what becomes latents. Which are hard to "
        "predict is measured as ever. Only for backbone, and for its own model, not the companion.",
        json_schema_extra=flag("encoder_bidirectional"),
    )
    companion: str | None = Field(
        None,
        description="A second causal LM that reads the text too, as another architecture sees it; the last dimensions "
        "of each latent are its. Only for backbone.",
        json_schema_extra=flag("companion_id"),
    )
    companion_layers: list[NonNegativeInt] = Field(
        [5, 11, 17],
        min_length=1,
        description="Hidden states of the companion that are taken, counted as in layers.",
        json_schema_extra=flag("companion_layers"),
    )
    companion_d_z: PositiveInt = Field(
        256, description="Dimensions of the d_z that are the companion's.", json_schema_extra=flag("companion_d_z")
    )
    keep: PositiveInt | None = Field(
        None,
        description="Tokens that are read of a window, of those that it has or of the whole text's. Default: all of "
        "its own. Only for backbone.",
        json_schema_extra=flag("encoder_keep"),
    )
    keep_by: Literal["surprisal", "salience"] = Field(
        "surprisal",
        description="Which these are. surprisal: those that the sender's model finds hardest to predict; salience: "
        "those that are likely to be asked about as well, as the training questions tell.",
        json_schema_extra=flag("encoder_keep_by"),
    )
    keep_from: Literal["window", "text"] = Field(
        "window",
        description="Whether each window gives its own, or the whole text gives keep times as many as it has windows, "
        "dealt out to them in order.",
        json_schema_extra=flag("encoder_keep_from"),
    )
    keep_order: Literal["surprisal", "score"] = Field(
        "surprisal",
        description="Which token of a window comes first, and so in which heads of a receiver: the hardest to predict, "
        "or the best by keep_by.",
        json_schema_extra=flag("encoder_keep_order"),
    )
    latent_len: PositiveInt | None = Field(
        None,
        description="Fixed number of latents M. backbone: windows of ceil(T/M) tokens, of which `window` are read.",
    )
    latent_shared_len: NonNegativeInt | None = Field(
        None,
        description="Latents that every receiver reads, where there are private ones; default: what they leave of "
        "latent_len. Not for backbone.",
    )
    latent_private_len: NonNegativeInt = Field(
        0, description="Latents besides that only one receiver reads, so many for each. Not for backbone."
    )
    d_z: PositiveInt = Field(512, le=65535, description="Width of a latent.")

    @field_validator("window")
    @classmethod
    def _whole(cls, value: float) -> float:
        return int(value) if value % 1 == 0 else value

    @field_serializer("window")
    def _as_it_is(self, value: float) -> int | float:
        return value

    @model_validator(mode="before")
    @classmethod
    def _without_layers(cls, values: Any, info: ValidationInfo) -> Any:
        """A kept configuration loses layers that never meant anything, so that it is the same as one without."""
        if is_kept(info) and isinstance(values, dict) and values.get("type", "backbone") != "backbone":
            return {key: value for key, value in values.items() if key != "layers"}
        return values

    @model_validator(mode="after")
    def _has_effect(self) -> EncoderConfig:
        """What backbone alone can do, and what means nothing by itself."""
        if self.type != "backbone" and "layers" in self.changed:
            raise ValueError(self.unused("layers", f"does nothing, as encoder.type = {self.type!r} takes none"))
        for key, does in (("keep", "chooses tokens"), ("companion", "has one"), ("bidirectional", "reads that way")):
            if getattr(self, key) and self.type != "backbone":
                raise ValueError(f"{key}: only encoder.type = 'backbone' {does}, not {self.type!r}")
        if self.keep is None and self.window % 1:
            raise ValueError(f"window: {self.window} is a fraction; only encoder.keep can read that")
        if self.keep is not None and self.keep >= self.window:
            raise ValueError(f"keep: {self.keep} is not less than encoder.window = {self.window}")
        for key in self.changed:
            if (needed := NEEDS.get(key)) and getattr(self, needed) is None:
                raise ValueError(self.unused(key, f"does nothing without encoder.{needed}"))
        if self.keep_order == "score" and self.keep_by == "surprisal":
            raise ValueError("keep_order: with encoder.keep_by = 'surprisal' both orders are the same")
        if self.companion is not None and self.companion_d_z >= self.d_z:
            raise ValueError(f"companion_d_z: {self.companion_d_z} leaves nothing of encoder.d_z = {self.d_z}")
        return self

    @property
    def read(self) -> int:
        """Tokens that are read of a window."""
        return self.keep or math.ceil(self.window)

    @property
    def own_d_z(self) -> int:
        """Dimensions of a latent that are not the companion's."""
        return self.d_z - self.companion_d_z if self.companion else self.d_z


class QueriesConfig(Attending):
    """Learned queries of the encoders byte, simple-st and stq. A text of M latents takes the first M of them."""

    flag_prefix = "query_"

    bank: PositiveInt = Field(
        64,
        description="Queries there are where encoder.latent_len does not say so: the most latents of a text.",
    )
    width: PositiveInt = Field(256, description="Width of the queries and all behind them.")
    heads: PositiveInt = Field(4, description="Attention heads.")
    layers: PositiveInt = Field(1, description="Layers of cross-attention (byte, stq).")


class ByteConfig(Section):
    """The transformer over bytes of the encoder byte; its width and heads are those of the queries."""

    flag_prefix = "byte_"

    layers: PositiveInt = Field(2, description="Transformer layers.")
    max_len: PositiveInt = Field(2048, description="Most bytes of a text; attention costs their square.")


class LatentRefinerConfig(Attending):
    """A small transformer that smooths the latents before they are sent (features.use_latent_refiner)."""

    flag_prefix = "refiner_"

    layers: PositiveInt = Field(2, description="Transformer layers.")
    heads: PositiveInt = Field(4, description="Attention heads.")
    width: PositiveInt = Field(256, description="Width.")
    ff: PositiveInt = Field(512, description="Width of the feed-forward parts.")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout, in training.")


class CodecConfig(Section):
    """Learned codecs: codebooks for the latents of the trained sender, and training with the codes in the loop."""

    flag_prefix = "codec_"

    learned: list[Literal["rvq", "fsq", "aq"]] = Field(
        [],
        description="Codecs that get a codebook: residual vector, finite scalar, additive quantisation (aq, of "
        "encoder.type = 'backbone' without a refiner: a codeword for every token). None: no such stage.",
        json_schema_extra=flag("learned_codecs"),
    )
    bits: PositiveFloat = Field(
        48.0,
        description="Bits a latent. rvq: of its indices; fsq: of its levels behind the entropy coder.",
    )
    width: PositiveInt = Field(256, description="Dimensions that are coded, after rotation.")
    layers: PositiveInt = Field(4, le=255, description="Payload layers, coarse to fine.")
    index_bits: PositiveInt = Field(8, le=12, description="rvq: bits of an index into a codebook.")
    rank: PositiveInt = Field(
        256, description="aq: numbers that a codeword has; the matrix of its column does the rest."
    )
    epochs: PositiveInt = Field(
        20, description="rvq: passes of k-means over the latents.", json_schema_extra=flag("codec_fit_epochs")
    )
    passages: PositiveInt = Field(1000, description="Training passages whose latents are looked at.")
    float_share: Share = Field(0.25, description="Share of the steps without quantisation.")
    drop_layers: Share = Field(
        0.5,
        description="Share of the others in which only some payload layers arrive.",
    )

    @field_validator("learned")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("names a codec twice")
        return value

    @model_validator(mode="after")
    def _has_effect(self, info: ValidationInfo) -> CodecConfig:
        """Options of codecs that are not learned are refused."""
        for key in self.changed if not is_kept(info) else ():
            needed = {"index_bits": ["rvq"], "epochs": ["rvq"], "rank": ["aq"], "bits": ["rvq", "fsq"]}.get(key, [])
            if not self.learned or (needed and not set(needed) & set(self.learned)):
                codecs = " or ".join(needed) or "a codec"
                raise ValueError(self.unused(key, f"does nothing without {codecs} in codec.learned"))
        return self


class LatentsConfig(Section):
    """Latent dropout in end-to-end training: the share of latents that a receiver reads goes from start to end.

    At a share t of the stage it is keep_start + (keep_end - keep_start) * t ** keep_power. Latents that are dropped are
    not there for the receiver: it reads a shorter message.
    """

    flag_prefix = "latent_"

    keep_start: float = Field(1.0, gt=0.0, le=1.0, description="Share at the first step.")
    keep_end: float = Field(1.0, gt=0.0, le=1.0, description="Share at the last step.")
    keep_power: PositiveFloat = Field(1.0, description="1: evenly; more: late; less: early.")
    keep_which: Literal["prefix", "subset"] = Field(
        "prefix",
        description="prefix: the first latents, a number drawn between that share and all (nested dropout); subset: "
        "that share, drawn at random.",
    )

    @property
    def drops(self) -> bool:
        """Whether any latent is ever dropped."""
        return self.keep_start < 1.0 or self.keep_end < 1.0
