"""Losses, stages and the optimizer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from latentwire.config.sections.base import Beta, Section, Share


class LossesConfig(Section):
    """What is added to the cross-entropy of answers in slot tuning and end to end; a weight of 0 leaves a term out.

    Baselines are trained on the cross-entropy of answers alone. The terms from `align_weight` on are about what the
    sender and readers make, so they play a part end to end only.
    """

    copy_weight: NonNegativeFloat = Field(
        0.0, description="Weight of copying: going on with spans of the passage from their first tokens."
    )
    copy_spans: PositiveInt = Field(2, description="Spans a passage, packed like questions.")
    first_token_weight: NonNegativeFloat = Field(
        0.0, description="Weight of the cross-entropy of answers' first tokens, at the start of a stage."
    )
    first_token_weight_end: NonNegativeFloat | None = Field(
        None, description="The same at its end; without it, the weight stays."
    )
    first_token_schedule: Literal["linear", "cosine"] = Field("linear", description="How it goes from start to end.")
    first_token_entropy: NonNegativeFloat = Field(
        0.0, description="Weight of a bonus for the entropy of the prediction of answers' first tokens."
    )
    k_tokens: PositiveInt = Field(4, description="K: first tokens of an answer that the next three terms look at.")
    k_tokens_end: PositiveInt | None = Field(
        None, description="K at the end of a stage, which it reaches in equal steps; without it, K stays."
    )
    k_token_weight: NonNegativeFloat = Field(0.0, description="Weight of the cross-entropy of the first K tokens.")
    kd_weight: NonNegativeFloat = Field(
        0.0, description="Weight of distillation: KL to the predictions of the receiver reading the text itself."
    )
    kd_temperature: PositiveFloat = Field(1.0, description="Temperature of both predictions in distillation.")
    state_kd_weight: NonNegativeFloat = Field(
        0.0, description="Weight of distillation of hidden states from the receiver reading the text itself."
    )
    state_kd_kind: Literal["mse", "cosine"] = Field("mse", description="How hidden states are compared.")
    state_kd_layers: list[PositiveInt] | None = Field(
        None,
        min_length=1,
        description="Layers whose outputs are compared, counted from 1; default: the final hidden states.",
    )
    align_weight: NonNegativeFloat = Field(
        0.0, description="Weight of alignment: each answer's mean token embedding has a vector or slot close to it."
    )
    manifold_weight: NonNegativeFloat = Field(
        0.0, description="Weight of the distance in mean and variance of what readers make from what receivers know."
    )
    latent_scale_weight: NonNegativeFloat = Field(
        0.0, description="Weight of the deviation of latents from unit RMS, dimension by dimension."
    )
    output_rms_weight: NonNegativeFloat = Field(
        0.0, description="Weight of the deviation of vectors or slots from the RMS that they should have."
    )

    @property
    def distils(self) -> bool:
        """Whether a teacher, the receiver reading the text itself, is needed."""
        return self.kd_weight > 0 or self.state_kd_weight > 0


def _most_steps(default: int) -> Any:
    return Field(default, ge=0, description="Stop after so many steps; with 0 nothing is trained.")


class TuningStage(Section):
    """Length and rates of one gradient stage. Epochs that come without a limit of steps mean all of these epochs."""

    epochs: PositiveInt = Field(
        1, description="Passes over the training passages. As a flag or override, it lifts a file's max_steps."
    )
    max_steps: int | None = _most_steps(200)
    lr_scale: PositiveFloat = Field(1.0, description="Multiplies every learning rate of the stage.")

    @model_validator(mode="before")
    @classmethod
    def _epochs_alone(cls, values: Any) -> Any:
        alone = isinstance(values, dict) and "epochs" in values
        return {"max_steps": None} | values if alone else values


class SlotTuningStage(TuningStage):
    """The stage in which each receiver is tuned on its own slots."""

    max_steps: int | None = _most_steps(300)


class EndToEndStage(TuningStage):
    """The stage with the wire, which may begin with and keep some reading of the text itself."""

    max_steps: int | None = _most_steps(1000)
    warmup_text_steps: NonNegativeInt = Field(
        0, description="Steps in which receivers read the text and the latents in turn, so that LoRA learns the task."
    )
    tail_text_prob: Share = Field(0.0, description="How often they read the text after that.")


class ClosedFormStage(Section):
    """Reduced-rank ridge regression of all receivers' targets on the sender's window features."""

    passages: PositiveInt = Field(2000, description="Passages read.")
    ridge: PositiveFloat = Field(
        0.1,
        description="Ridge, as a share of each window feature's variance; where latents or tokens predict, of the "
        "mean variance.",
    )
    band: NonNegativeInt | None = Field(
        1,
        description="Tokens on each side of its own from whose features a slot is predicted; null: the whole window.",
    )
    importance_passages: NonNegativeInt = Field(
        24, description="Passages on which the answer loss tells how much each target matters; 0: all matter alike."
    )
    importance_floor: float = Field(0.2, gt=0.0, le=1.0, description="Share of the weights that is spread evenly.")
    held_out: PositiveInt = Field(40, description="Passages set aside to report how good the fits are.")
    salience_passages: PositiveInt = Field(
        1000, description="Passages with questions from which encoder.keep_by = salience learns what is asked."
    )
    companion_for: list[str] | None = Field(
        None,
        min_length=1,
        description="Receivers that encoder.companion is fitted to; default: all, or those of checkpoint.init_from.",
    )


class CurriculumConfig(Section):
    """The stages of training, in order, and who is trained in them."""

    train_only: list[str] | None = Field(
        None,
        min_length=1,
        description="Train only these receivers: the sender and the others stay as checkpoint.init_from has them.",
    )
    slot_tuning: SlotTuningStage = SlotTuningStage()
    closed_form: ClosedFormStage = ClosedFormStage()
    end_to_end: EndToEndStage = EndToEndStage()
    codec: TuningStage = TuningStage()
    baselines: TuningStage = TuningStage()


STAGES = tuple(name for name, field in CurriculumConfig.model_fields.items() if isinstance(field.default, Section))
"""In the order in which a run goes through them."""


class OptimizerConfig(Section):
    """AdamW with fp32 master weights."""

    lr: PositiveFloat = Field(3e-4, description="End to end: LoRA and sinks.")
    lr_tuning: PositiveFloat = Field(1e-3, description="LoRA in slot tuning and in the tuned baselines.")
    lr_encoder: PositiveFloat = Field(1e-5, description="End to end: the linear map of the backbone encoder.")
    lr_sender: PositiveFloat = Field(
        3e-4,
        description="End to end: encoders that start from scratch (byte, simple-st, stq), the sender's LoRA and the "
        "latent refiner.",
    )
    lr_generator: PositiveFloat = Field(2e-4, description="End to end: generators and adapters.")
    lr_generator_mlp: PositiveFloat = Field(2e-3, description="End to end: their MLPs, which start at zero.")
    batch_size: PositiveInt = Field(8, description="Passages of a micro-batch.")
    accumulation: PositiveInt = Field(1, description="Micro-batches a step, in each process; receivers take turns.")
    weight_decay: float = Field(0.0, ge=0.0)
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    grad_clip: PositiveFloat = Field(1.0, description="Largest gradient norm.")
    schedule: Literal["linear", "cosine", "constant", "restarts", "wsd"] = Field(
        "linear",
        description="Decay after the warm-up; restarts: cosine, several times; wsd: constant, then linear at the end.",
    )
    cycles: PositiveInt = Field(3, description="Cycles of schedule='restarts'.")
    decay_share: float = Field(
        0.2, gt=0.0, le=1.0, description="Last share of the steps in which schedule='wsd' decays."
    )
    warmup_steps: int = Field(
        20, ge=0, description="Steps in which the rate rises to its peak; at most a tenth of a stage's."
    )
    min_lr_ratio: float = Field(0.05, ge=0.0, le=1.0, description="Where the decay ends, as a share of the peak.")
    max_bad_steps: PositiveInt = Field(5, description="NaN or inf losses in a row after which training stops.")
