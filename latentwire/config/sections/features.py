"""Optional parts of a receiver."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from latentwire.config.sections.base import Attending, Section, flag


class FeaturesConfig(Section):
    """Which optional parts are on."""

    use_lora: bool = Field(
        False, description="LoRA on the receivers; off leaves them frozen, also where a checkpoint has LoRA for them."
    )
    use_deep_prefix: bool = Field(
        True, description="Read latents as key/value slots in every layer; off: as vectors at inputs_embeds (adapter)."
    )
    use_prefix: bool = Field(False, description="Learned keys and values in every layer, the same for every message.")
    use_latent_adapters: bool = Field(False, description="Gated cross-attention from some layers to the latents.")
    use_coprocessor: bool = Field(
        False, description="A network that makes more keys and values from the latents; only without use_deep_prefix."
    )
    use_gist_head: bool = Field(
        False, description="Train with a head that rebuilds prompt embeddings from the latents."
    )
    use_latent_refiner: bool = Field(False, description="A small transformer on the latents before they are sent.")
    use_sender_lora: bool = Field(
        False,
        description="LoRA on the sender's model, trained end to end; off leaves it frozen. Only for encoder.type = "
        "'backbone'.",
    )


PROJECTIONS = {
    "attn": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
}
"""Linear layers of a decoder block, by what they belong to."""


class LoraConfig(Section):
    """LoRA (Hu et al. 2021, arXiv 2106.09685) through PEFT."""

    flag_prefix = "lora_"

    r: PositiveInt = Field(8, description="Rank.")
    alpha: PositiveFloat = Field(16.0, description="Scale; the update is multiplied by alpha / r.")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Dropout on the LoRA input.")
    targets: list[str] | Literal["all-linear"] = Field(
        "all-linear",
        description="Names of the linear layers that get LoRA; also attn, mlp, and attn_firstN:12 for those of the "
        "first 12 layers.",
    )
    first_n: PositiveInt | None = Field(
        None, description="Only the first N layers.", json_schema_extra=flag("lora_firstN")
    )
    merge: bool = Field(
        False,
        description="In training, add the update to the weights first: one product a layer in place of three, which is "
        "faster on a GPU, and a third more arithmetic, which is slower on a CPU. The sums stay in memory until the "
        "backward pass: as much as the weights that LoRA is on.",
    )

    @model_validator(mode="after")
    def _merges(self) -> LoraConfig:
        if self.merge and self.dropout:
            raise ValueError(f"merge: leaves no input of its own for dropout = {self.dropout}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, values: Any) -> Any:
        """Projections in place of the names of groups of them, and `first_n` in place of _firstN:12 behind one."""
        if not isinstance(values, dict) or not isinstance(values.get("targets"), list | str):
            return values
        given, number = values["targets"], values.get("first_n")
        given = [given] if isinstance(given, str) else given
        found = [re.fullmatch(r"(all-linear|attn|mlp)(?:_firstN:([1-9]\d*))?", str(target)) for target in given]
        first = next((int(match[2]) for match in found if match and match[2]), None)
        if first is not None and len(given) > 1:
            raise ValueError(f"targets: {given}: a group of the first layers stands alone")
        if first is not None and str(number or first) != str(first):
            raise ValueError(f"targets: {given[0]} names another number of layers than first_n = {number}")
        pairs = zip(given, found, strict=True)
        names = [
            name for target, match in pairs for name in (PROJECTIONS.get(match[1], [match[1]]) if match else [target])
        ]
        if "all-linear" in names and len(names) > 1:
            raise ValueError(f"targets: {given} names all-linear and others")
        spelled = {"targets": "all-linear" if names == ["all-linear"] else list(dict.fromkeys(names))}
        return values | spelled | ({"first_n": first} if first else {})


class PrefixConfig(Section):
    """Prefix tuning (Li & Liang 2021, arXiv 2101.00190)."""

    flag_prefix = "prefix_"

    len: PositiveInt = Field(8, description="Positions.")
    projection: bool = Field(
        False,
        description="Make the slots by an MLP from one embedding each.",
    )
    hidden: PositiveInt = Field(256, description="Width of the embeddings and of the MLP.")


class LatentAdaptersConfig(Attending):
    """Gated cross-attention to the latents (Flamingo, Alayrac et al. 2022, arXiv 2204.14198)."""

    flag_prefix = "latent_adapter_"

    layers: list[PositiveInt] | None = Field(
        None,
        min_length=1,
        description="Layers behind whose output one stands, counted from 1; default: four, evenly spaced.",
    )
    heads: PositiveInt = Field(4, description="Attention heads.")
    width: PositiveInt = Field(256, description="Width of all heads together.")


class CoprocessorConfig(Attending):
    """Cache augmentation (Liu et al. 2024, arXiv 2412.17747)."""

    flag_prefix = "coprocessor_"

    len: PositiveInt = Field(8, description="Positions added.")
    layers: PositiveInt = Field(1, description="Transformer layers.")
    heads: PositiveInt = Field(4, description="Attention heads.")
    width: PositiveInt = Field(256, description="Width.")


class GistHeadConfig(Attending):
    """Reconstruction of prompt embeddings from the latents, for training only."""

    flag_prefix = "gist_"

    weight: PositiveFloat = Field(0.1, description="Weight of the loss.")
    target_len: PositiveInt = Field(48, description="Tokens of the text that are rebuilt.")
    mask_ratio: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Share of them that is hidden from the head.",
    )
    heads: PositiveInt = Field(4, description="Attention heads.")
    width: PositiveInt = Field(256, description="Width.")
