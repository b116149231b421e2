"""Every option of LatentWire, defined once.

One frozen Pydantic model per section. The same definition serves the JSON file, the dotted override
(`--override data.samples=64`), the command-line flag (`--samples 64`) and the reference in docs/config.md.
A field's flag is its name; `flag(...)` gives another one where the name alone would be unclear.
"""

from __future__ import annotations

from pydantic import ValidationInfo, model_validator

from latentwire.config.layout import LatentLayout, deal_out
from latentwire.config.sections.base import Section, is_kept
from latentwire.config.sections.features import (
    CoprocessorConfig,
    FeaturesConfig,
    GistHeadConfig,
    LatentAdaptersConfig,
    LoraConfig,
    PrefixConfig,
)
from latentwire.config.sections.inputs import DataConfig, ModelConfig
from latentwire.config.sections.latents import (
    ByteConfig,
    CodecConfig,
    EncoderConfig,
    LatentRefinerConfig,
    LatentsConfig,
    QueriesConfig,
)
from latentwire.config.sections.reading import AdapterConfig, AnchorConfig, DeepPrefixConfig
from latentwire.config.sections.running import CheckpointConfig, DiagnosticsConfig, EvaluationConfig, SystemConfig
from latentwire.config.sections.training import CurriculumConfig, LossesConfig, OptimizerConfig

WITH_QUERIES = ("byte", "simple-st", "stq")
"""Encoders with learned queries."""


class Config(Section):
    """One run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    queries: QueriesConfig = QueriesConfig()
    byte: ByteConfig = ByteConfig()
    latent_refiner: LatentRefinerConfig = LatentRefinerConfig()
    latents: LatentsConfig = LatentsConfig()
    codec: CodecConfig = CodecConfig()
    adapter: AdapterConfig = AdapterConfig()
    deep_prefix: DeepPrefixConfig = DeepPrefixConfig()
    anchor: AnchorConfig = AnchorConfig()
    features: FeaturesConfig = FeaturesConfig()
    lora: LoraConfig = LoraConfig()
    prefix: PrefixConfig = PrefixConfig()
    latent_adapters: LatentAdaptersConfig = LatentAdaptersConfig()
    coprocessor: CoprocessorConfig = CoprocessorConfig()
    gist_head: GistHeadConfig = GistHeadConfig()
    losses: LossesConfig = LossesConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    system: SystemConfig = SystemConfig()

    @model_validator(mode="after")
    def _compatible(self) -> Config:
        """What excludes each other is refused here, before any model is loaded."""
        if self.features.use_coprocessor and self.features.use_deep_prefix:
            raise ValueError(
                "features.use_coprocessor: excludes features.use_deep_prefix, which makes the whole cache already; "
                "turn that off (--no_use_deep_prefix)"
            )
        if "aq" in self.codec.learned and (self.encoder.type != "backbone" or self.features.use_latent_refiner):
            raise ValueError(
                "codec.learned: aq is for latents to which each token adds, of encoder.type = 'backbone' without "
                "features.use_latent_refiner"
            )
        if self.lora.merge and self.model.load_4bit:
            raise ValueError("lora.merge: excludes model.load_4bit, whose weights nothing can be added to")
        if self.system.sequential_models:
            for key, value in (
                ("model.load_4bit", self.model.load_4bit),
                ("system.device_map", self.system.device_map),
            ):
                if value:
                    raise ValueError(f"system.sequential_models: excludes {key}, which places the weights itself")
        return self

    @model_validator(mode="after")
    def _has_effect(self, info: ValidationInfo) -> Config:
        """Options of what is off, and others that could do nothing beside them, are refused."""
        kept = is_kept(info)
        self._check_sections(kept)
        self._check_losses()
        self._check_choice()
        self._check_companion()
        self._check_ranking()
        self._check_sender_layers()
        if self.data.cloze and self.data.text_path is None:
            raise ValueError("data.cloze: asks for data.text_path, the text that questions are made from")
        for key in ("warmup_text_steps", "tail_text_prob") if not kept else ():
            if getattr(self.curriculum.end_to_end, key) and not self.features.use_lora:
                raise ValueError(
                    f"curriculum.end_to_end.{key}: only LoRA learns from the text (features.use_lora is off)"
                )
        return self

    def _check_sections(self, kept: bool) -> None:
        """What a section sets is for something that is there."""
        for key in self.adapter.changed if self.features.use_deep_prefix else ():
            raise ValueError(
                f"adapter.{key}: only the embedding reader has it, so features.use_deep_prefix must be off"
            )
        for name, why in (self._features_off() | ({} if kept else self._encoders_off())).items():
            section = getattr(self, name)
            for key in section.changed:
                raise ValueError(f"{name}.{section.unused(key, f'does nothing, as {why}')}")
        for key in self.queries.changed if not kept else ():
            if key == "bank" and self.latent_layout.total:
                raise ValueError(f"queries.{key}: does nothing, as latent_len says how many queries there are")
            if key in ("heads", "layers") and self.encoder.type == "simple-st":
                raise ValueError(f"queries.{key}: does nothing, as encoder.type = 'simple-st' has no attention")

    def _features_off(self) -> dict[str, str]:
        """The sections of features that are off, and why they do nothing."""
        switches = {name: f"use_{name}" for name in type(self).model_fields if name != "lora"}  # the sender's LoRA too
        off = {name: switch for name, switch in switches.items() if not getattr(self.features, switch, True)}
        return {name: f"features.{switch} is off" for name, switch in off.items()}

    def _encoders_off(self) -> dict[str, str]:
        """The sections of encoders that are not there, and why they do nothing."""
        kind = self.encoder.type
        queries = {"queries": f"encoder.type = {kind!r} has none"} if kind == "backbone" else {}
        return queries | ({} if kind == "byte" else {"byte": f"encoder.type is {kind!r}"})

    @model_validator(mode="after")
    def _known_receivers(self) -> Config:
        """Who is named is there."""
        curriculum, known = self.curriculum, ", ".join(self.model.chosen)
        for key, names in (
            ("curriculum.train_only", curriculum.train_only),
            ("curriculum.closed_form.companion_for", curriculum.closed_form.companion_for),
            ("deep_prefix.ranked", self.deep_prefix.ranked),
        ):
            for name in names or []:
                if name not in self.model.chosen:
                    raise ValueError(f"{key}: {name!r} is not in model.receivers (there are: {known})")
        return self

    def _check_losses(self) -> None:
        """What a loss looks at can change."""
        adapter = self.adapter
        fixed = not self.features.use_deep_prefix and adapter.calibration != "none" and not adapter.learn_gain
        if self.losses.output_rms_weight and fixed:
            raise ValueError(
                f"losses.output_rms_weight: adapter.calibration = {adapter.calibration!r} fixes that RMS already"
            )
        if self.losses.latent_scale_weight and self.curriculum.train_only:
            raise ValueError("losses.latent_scale_weight: curriculum.train_only leaves the latents as they are")

    def _check_choice(self) -> None:
        """What asks for every token of a text, or for their order, does not go with a choice of them."""
        if self.encoder.keep is None:
            return
        for key, on in (
            ("losses.copy_weight", self.losses.copy_weight),
            ("features.use_gist_head", self.features.use_gist_head),
            ("deep_prefix.pattern", self.deep_prefix.pattern == "strided"),
        ):
            if on:
                raise ValueError(
                    f"{key}: asks for all tokens of a text in their order, and encoder.keep leaves some out"
                )

    def _check_companion(self) -> None:
        """What the closed form fits beside the encoder is there, and generators have a place for it."""
        for key, needed, there in (
            ("companion_for", "encoder.companion", self.encoder.companion is not None),
            ("salience_passages", "encoder.keep_by = 'salience'", self.encoder.keep_by == "salience"),
        ):
            if key in self.curriculum.closed_form.changed and not there:
                raise ValueError(f"curriculum.closed_form.{key}: does nothing without {needed}")
        if self.encoder.companion is not None and self.deep_prefix.rank is not None:
            raise ValueError("encoder.companion: its dimensions have no place in a generator of deep_prefix.rank")

    def _check_ranking(self) -> None:
        """Heads are ranked on some passages, and share tokens that are read."""
        own = self.deep_prefix
        for name, shown in own.ranked.items():
            if shown > self.encoder.read:
                raise ValueError(
                    f"deep_prefix.ranked: {name!r}: {shown} is more than the {self.encoder.read} read of a window"
                )
        if own.ranked and own.pattern == "strided":
            raise ValueError("deep_prefix.ranked: deep_prefix.pattern = 'strided' shows the same token in all heads")
        if own.ranked and not self.curriculum.closed_form.importance_passages:
            raise ValueError("deep_prefix.ranked: needs curriculum.closed_form.importance_passages to rank heads on")

    def _check_sender_layers(self) -> None:
        """The sender's model has layers that its LoRA or another mask may change."""
        if self.features.use_sender_lora and self.encoder.type != "backbone":
            raise ValueError(
                f"features.use_sender_lora: only encoder.type = 'backbone' has it, not {self.encoder.type!r}"
            )
        for key, on in (
            ("features.use_sender_lora", self.features.use_sender_lora),
            ("encoder.bidirectional", self.encoder.bidirectional),
        ):
            if on and not max(self.encoder.layers):
                raise ValueError(f"{key}: does nothing, as encoder.layers takes the embedding alone")

    @model_validator(mode="after")
    def _enough_latents(self) -> Config:
        """Latents add up, and there is a query for each of them."""
        layout = self.latent_layout
        if self.encoder.type not in WITH_QUERIES or layout.total is not None:
            return self
        most = -(-self.data.max_context_tokens // self.encoder.window)
        if most > self.queries.bank:
            raise ValueError(
                f"queries.bank: data.max_context_tokens = {self.data.max_context_tokens} in windows of "
                f"{self.encoder.window} need {most} queries; there are {self.queries.bank}"
            )
        return self

    @property
    def latent_layout(self) -> LatentLayout:
        """Which latents of a message each receiver reads."""
        encoder = self.encoder
        return deal_out(
            encoder.latent_len,
            encoder.latent_shared_len,
            encoder.latent_private_len,
            self.model.chosen,
            fixed=encoder.type != "backbone",
        )
