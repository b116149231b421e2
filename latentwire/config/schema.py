"""Every option of LatentWire, defined once.

One frozen Pydantic model per section. The same definition serves the JSON file, the dotted override
(`--override data.samples=64`), the command-line flag (`--samples 64`) and the reference in docs/config.md.
A field's flag is its name; `flag(...)` gives another one where the name alone would be unclear.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from latentwire.config.layout import LatentLayout, deal_out

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


def flag(name: str | None) -> dict[str, Any]:
    """Name a field's command-line flag (without dashes); None means that it has no flag of its own."""
    return {"flag": name}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())


class ModelConfig(Section):
    """The receivers and how they are loaded."""

    receivers: dict[str, str] = Field(
        {"smollm2-135m": "smollm2-135m", "gemma3-270m": "gemma3-270m"},
        description="Receiver name -> model: built-in alias, Hub id, local folder or .gguf file.",
        json_schema_extra=flag(None),
    )
    llama_id: str | None = Field(
        None, description="Shorthand: a receiver named 'llama'. Replaces the default receivers."
    )
    qwen_id: str | None = Field(None, description="Shorthand: a receiver named 'qwen'. Replaces the default receivers.")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Compute and frozen-weight type; auto: bfloat16 where the machine multiplies it natively.",
    )
    attn_implementation: Literal["auto", "eager", "sdpa"] = Field(
        "auto", description="auto: eager on CPU (its bf16 backward is the faster one there), sdpa elsewhere."
    )
    load_4bit: bool = Field(False, description="Load receivers in 4 bits with bitsandbytes (CUDA only).")

    @property
    def chosen(self) -> dict[str, str]:
        """Receiver name -> model: the shorthands, where given, replace the mapping."""
        short = {"llama": self.llama_id, "qwen": self.qwen_id}
        return {name: value for name, value in short.items() if value} or dict(self.receivers)


class DataConfig(Section):
    """Questions on passages, and plain text for the closed-form fit."""

    dataset: Literal["squad", "squad_v2", "hotpot", "facts"] = Field("facts", description="Which kind of data.")
    data_path: str | list[str] | None = Field(
        None, description="Training file(s) in the dataset's original JSON format; without it, the `datasets` library."
    )
    eval_path: str | None = Field(
        None, description="Held-out file in the same format; without it, the validation split."
    )
    text_path: str | None = Field(
        None, description="Plain text, one paragraph a line: more windows for the closed form."
    )
    samples: PositiveInt | None = Field(None, description="Use at most so many training questions.")
    max_context_tokens: PositiveInt = Field(220, description="Training passages with more sender tokens are left out.")
    questions_per_passage: PositiveInt = Field(5, description="Most questions packed behind one encoded passage.")
    seed: int = Field(
        0, description="Seed of sampling and of the facts generator.", json_schema_extra=flag("data_seed")
    )


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
    window: PositiveInt = Field(8, description="Sender tokens behind one latent.")
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


class QueriesConfig(Section):
    """Learned queries of the encoders byte, simple-st and stq. A text of M latents takes the first M of them."""

    bank: PositiveInt = Field(
        64,
        description="Queries there are where encoder.latent_len does not say so: the most latents of a text.",
        json_schema_extra=flag("query_bank"),
    )
    width: PositiveInt = Field(
        256, description="Width of the queries and all behind them.", json_schema_extra=flag("query_width")
    )
    heads: PositiveInt = Field(4, description="Attention heads.", json_schema_extra=flag("query_heads"))
    layers: PositiveInt = Field(
        1, description="Layers of cross-attention (byte, stq).", json_schema_extra=flag("query_layers")
    )


class ByteConfig(Section):
    """The transformer over bytes of the encoder byte; its width and heads are those of the queries."""

    layers: PositiveInt = Field(2, description="Transformer layers.", json_schema_extra=flag("byte_layers"))
    max_len: PositiveInt = Field(
        2048, description="Most bytes of a text; attention costs their square.", json_schema_extra=flag("byte_max_len")
    )


class LatentRefinerConfig(Section):
    """A small transformer that smooths the latents before they are sent (features.use_latent_refiner)."""

    layers: PositiveInt = Field(2, description="Transformer layers.", json_schema_extra=flag("refiner_layers"))
    heads: PositiveInt = Field(4, description="Attention heads.", json_schema_extra=flag("refiner_heads"))
    width: PositiveInt = Field(256, description="Width.", json_schema_extra=flag("refiner_width"))
    ff: PositiveInt = Field(512, description="Width of the feed-forward parts.", json_schema_extra=flag("refiner_ff"))
    dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="Dropout, in training.", json_schema_extra=flag("refiner_dropout")
    )


class LatentsConfig(Section):
    """Latent dropout in end-to-end training: the share of latents that a receiver reads goes from start to end.

    At a share t of the stage it is keep_start + (keep_end - keep_start) * t ** keep_power. Latents that are dropped are
    not there for the receiver: it reads a shorter message.
    """

    keep_start: float = Field(
        1.0, gt=0.0, le=1.0, description="Share at the first step.", json_schema_extra=flag("latent_keep_start")
    )
    keep_end: float = Field(
        1.0, gt=0.0, le=1.0, description="Share at the last step.", json_schema_extra=flag("latent_keep_end")
    )
    keep_power: PositiveFloat = Field(
        1.0, description="1: evenly; more: late; less: early.", json_schema_extra=flag("latent_keep_power")
    )
    keep_which: Literal["prefix", "subset"] = Field(
        "prefix",
        description="prefix: the first latents, a number drawn between that share and all (nested dropout); subset: "
        "that share, drawn at random.",
        json_schema_extra=flag("latent_keep_which"),
    )

    @property
    def drops(self) -> bool:
        """Whether any latent is ever dropped."""
        return self.keep_start < 1.0 or self.keep_end < 1.0


class DeepPrefixConfig(Section):
    """The slot reader (features.use_deep_prefix). Its length is the message's: encoder.window, encoder.latent_len."""

    pattern: Literal["interleaved", "strided"] = Field(
        "interleaved",
        description="Which token of its window a KV head starts from: another one per head, or the last one in all.",
    )
    hidden: int = Field(
        256,
        ge=0,
        description="Width of the MLP beside the linear generator; 0 leaves it out.",
        json_schema_extra=flag("generator_hidden"),
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


class AnchorConfig(Section):
    """What stands around the wire in the receiver's prompt. Everything here is counted as positions."""

    text: str = Field(
        "", description="Text between the context and the question.", json_schema_extra=flag("anchor_text")
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


class FeaturesConfig(Section):
    """Which optional parts are on."""

    use_lora: bool = Field(False, description="LoRA on the receivers; off leaves them frozen.")
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


class LoraConfig(Section):
    """LoRA (Hu et al. 2021, arXiv 2106.09685) through PEFT."""

    r: PositiveInt = Field(8, description="Rank.", json_schema_extra=flag("lora_r"))
    alpha: PositiveFloat = Field(
        16.0, description="Scale; the update is multiplied by alpha / r.", json_schema_extra=flag("lora_alpha")
    )
    dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="Dropout on the LoRA input.", json_schema_extra=flag("lora_dropout")
    )
    targets: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the linear layers that get LoRA.", json_schema_extra=flag("lora_targets")
    )
    first_n: PositiveInt | None = Field(
        None, description="Only the first N layers.", json_schema_extra=flag("lora_first_n")
    )


class PrefixConfig(Section):
    """Prefix tuning (Li & Liang 2021, arXiv 2101.00190)."""

    len: PositiveInt = Field(8, description="Positions.", json_schema_extra=flag("prefix_len"))
    projection: bool = Field(
        False,
        description="Make the slots by an MLP from one embedding each.",
        json_schema_extra=flag("prefix_projection"),
    )
    hidden: PositiveInt = Field(
        256, description="Width of the embeddings and of the MLP.", json_schema_extra=flag("prefix_hidden")
    )


class LatentAdaptersConfig(Section):
    """Gated cross-attention to the latents (Flamingo, Alayrac et al. 2022, arXiv 2204.14198)."""

    layers: list[PositiveInt] | None = Field(
        None,
        min_length=1,
        description="Layers behind whose output one stands, counted from 1; default: four, evenly spaced.",
        json_schema_extra=flag("latent_adapter_layers"),
    )
    heads: PositiveInt = Field(4, description="Attention heads.", json_schema_extra=flag("latent_adapter_heads"))
    width: PositiveInt = Field(
        256, description="Width of all heads together.", json_schema_extra=flag("latent_adapter_width")
    )


class CoprocessorConfig(Section):
    """Cache augmentation (Liu et al. 2024, arXiv 2412.17747)."""

    len: PositiveInt = Field(8, description="Positions added.", json_schema_extra=flag("coprocessor_len"))
    layers: PositiveInt = Field(1, description="Transformer layers.", json_schema_extra=flag("coprocessor_layers"))
    heads: PositiveInt = Field(4, description="Attention heads.", json_schema_extra=flag("coprocessor_heads"))
    width: PositiveInt = Field(256, description="Width.", json_schema_extra=flag("coprocessor_width"))


class GistHeadConfig(Section):
    """Reconstruction of prompt embeddings from the latents, for training only."""

    weight: PositiveFloat = Field(0.1, description="Weight of the loss.", json_schema_extra=flag("gist_weight"))
    target_len: PositiveInt = Field(
        48, description="Tokens of the text that are rebuilt.", json_schema_extra=flag("gist_target_len")
    )
    mask_ratio: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="Share of them that is hidden from the head.",
        json_schema_extra=flag("gist_mask_ratio"),
    )
    heads: PositiveInt = Field(4, description="Attention heads.", json_schema_extra=flag("gist_heads"))
    width: PositiveInt = Field(256, description="Width.", json_schema_extra=flag("gist_width"))


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


class TuningStage(Section):
    """Length and rates of one gradient stage."""

    epochs: PositiveInt = Field(
        1, description="Passes over the training passages. As a flag or override, it lifts a file's max_steps."
    )
    max_steps: int | None = Field(None, ge=0, description="Stop after so many steps; 0 skips the stage.")
    lr_scale: PositiveFloat = Field(1.0, description="Multiplies every learning rate of the stage.")


class EndToEndStage(TuningStage):
    """The stage with the wire, which may begin with and keep some reading of the text itself."""

    warmup_text_steps: NonNegativeInt = Field(
        0, description="Steps in which receivers read the text and the latents in turn, so that LoRA learns the task."
    )
    tail_text_prob: Share = Field(0.0, description="How often they read the text after that.")


class ClosedFormStage(Section):
    """Reduced-rank ridge regression of all receivers' targets on the sender's window features."""

    passages: PositiveInt = Field(2000, description="Passages read.")
    ridge: PositiveFloat = Field(0.1, description="Ridge, as a share of the mean diagonal of the feature covariance.")
    band: NonNegativeInt | None = Field(
        1,
        description="Tokens on each side of its own from whose features a slot is predicted; null: the whole window.",
    )
    importance_passages: NonNegativeInt = Field(
        24, description="Passages on which the answer loss tells how much each target matters; 0: all matter alike."
    )
    importance_floor: float = Field(0.2, gt=0.0, le=1.0, description="Share of the weights that is spread evenly.")
    held_out: PositiveInt = Field(40, description="Passages set aside to report R².")


class CurriculumConfig(Section):
    """The stages of training, in order."""

    slot_tuning: TuningStage = TuningStage(max_steps=300)
    baselines: TuningStage = TuningStage(max_steps=200)
    closed_form: ClosedFormStage = ClosedFormStage()
    end_to_end: EndToEndStage = EndToEndStage(max_steps=1000)


class OptimizerConfig(Section):
    """AdamW with fp32 master weights."""

    lr: PositiveFloat = Field(3e-4, description="End to end: LoRA and sinks.")
    lr_tuning: PositiveFloat = Field(1e-3, description="LoRA in slot tuning and in the tuned baselines.")
    lr_encoder: PositiveFloat = Field(1e-5, description="End to end: the linear map of the backbone encoder.")
    lr_sender: PositiveFloat = Field(
        3e-4, description="End to end: encoders that start from scratch (byte, simple-st, stq) and the latent refiner."
    )
    lr_generator: PositiveFloat = Field(2e-4, description="End to end: generators and adapters.")
    batch_size: PositiveInt = Field(8, description="Passages a step.")
    accumulation: PositiveInt = Field(1, description="Micro-batches a step.")
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
    warmup_steps: int = Field(20, ge=0)
    min_lr_ratio: float = Field(0.05, ge=0.0, le=1.0, description="Where the decay ends, as a share of the peak.")
    max_bad_steps: PositiveInt = Field(5, description="NaN or inf losses in a row after which training stops.")


class DiagnosticsConfig(Section):
    """What is written to diagnostics.jsonl."""

    log_every: PositiveInt = Field(10, description="Steps between two lines of a receiver.")
    grad_norms_every: NonNegativeInt = Field(
        0,
        description="Steps between two measurements of every loss term's own gradient norm; 0 for none. Each costs one "
        "more backward pass a term.",
    )
    profile_memory: bool = Field(
        False, description="Peak memory of each step's forward, backward and optimizer, and of each stage."
    )
    log_shapes: bool = Field(
        False, description="Print the shape of every tensor handed from part to part, once a shape."
    )


class CheckpointConfig(Section):
    """Where a run writes and what it keeps."""

    runs_dir: str = Field("runs", description="Folder of all runs.")
    init_from: str | None = Field(
        None, description="Start from this checkpoint, in place of slot tuning and the closed form."
    )
    every_steps: PositiveInt = Field(100, description="Steps between two resumable checkpoints.")
    keep: PositiveInt = Field(2, description="Step checkpoints kept; epoch checkpoints are always kept.")
    tuned_cache: str | None = Field(
        None, description="Where slot-tuned receivers and tuned baselines are kept; default: the user's cache."
    )


ModeName = Literal["text", "text_tuned", "latent", "token_budget", "no_context", "embedding_replay", "embedding_anchor"]
DEFAULT_MODES: tuple[ModeName, ...] = get_args(ModeName)[:-1]


class EvaluationConfig(Section):
    """Evaluation after training and by `latentwire.cli.eval`."""

    samples: int = Field(
        200, ge=0, description="Held-out questions; 0 skips evaluation.", json_schema_extra=flag("eval_samples")
    )
    modes: list[ModeName] = Field(
        list(DEFAULT_MODES),
        min_length=1,
        description="What is measured; the rest is null in eval.json. Of all modes, only embedding_anchor is off.",
        json_schema_extra=flag("eval_modes"),
    )
    anchor_text: str = Field(
        "Passage:\n",
        min_length=1,
        description="The text in front of the passage's embeddings in mode embedding_anchor.",
        json_schema_extra=flag("eval_anchor_text"),
    )
    batch_size: PositiveInt = Field(
        25, description="Questions generated at once.", json_schema_extra=flag("eval_batch_size")
    )
    max_new_tokens: PositiveInt = Field(24, description="Longest answer.")
    bootstrap: PositiveInt = Field(2000, description="Resamples behind each 95 % interval.")
    codec: str = Field(
        "fp16",
        pattern=r"^\w+(:\w+=\d+(,\w+=\d+)*)?$",
        description="How latents are put into bytes, here and by `latentwire encode`: fp32, fp16, bf16, int8, int6 or "
        "int4, the last three with settings if need be, such as int4:group=32,scale_bits=8.",
    )
    lm_bytes: bool = Field(
        False,
        description="Also measure the lossless limit: bytes of the text under the whole LM that encoder.model "
        "names, which is loaded for it.",
    )
    latency_samples: int = Field(8, ge=0, description="Questions timed one by one; 0 skips it.")


class SystemConfig(Section):
    """Machine."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:0, mps.")
    require_cuda: bool = Field(False, description="Refuse to start where CUDA is missing, before anything is loaded.")
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | dict[str, int | str] | None = Field(
        None,
        description="Spread every receiver over devices, as Transformers' from_pretrained does; by name or {module: "
        "device}. The sender stays on system.device.",
    )
    sequential_models: bool = Field(
        False,
        description="Only one receiver's weights in the device's memory at a time; the others wait on the CPU. Slower, "
        "with the same results.",
    )
    grad_ckpt: bool = Field(
        False,
        description="Gradient checkpointing of the receivers: activations are computed again in the backward pass.",
    )
    threads: PositiveInt | None = Field(None, description="CPU threads; default: what torch finds.")
    seed: int = Field(0, description="Seed of initialisation and of batch order.")
    cache_features: bool = Field(True, description="Keep the frozen sender's window features in memory.")


class Config(Section):
    """One run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    queries: QueriesConfig = QueriesConfig()
    byte: ByteConfig = ByteConfig()
    latent_refiner: LatentRefinerConfig = LatentRefinerConfig()
    latents: LatentsConfig = LatentsConfig()
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
                "features.use_coprocessor: excludes features.use_deep_prefix, which makes the whole cache already"
            )
        for name in ("latent_adapters", "coprocessor", "gist_head", "queries", "latent_refiner"):
            section = getattr(self, name)
            if section.width % section.heads:
                raise ValueError(f"{name}.width: {section.width} is not a multiple of {name}.heads = {section.heads}")
        if self.system.sequential_models:
            for key, value in (
                ("model.load_4bit", self.model.load_4bit),
                ("system.device_map", self.system.device_map),
            ):
                if value:
                    raise ValueError(f"system.sequential_models: excludes {key}, which places the weights itself")
        return self

    @model_validator(mode="after")
    def _has_effect(self) -> Config:
        """An option that could do nothing is refused."""
        adapter, stage = self.adapter, self.curriculum.end_to_end
        if self.features.use_deep_prefix:
            changed = {"color": adapter.color != "none", "gain": adapter.gain != 1.0, "learn_gain": adapter.learn_gain}
            for key in (key for key, value in changed.items() if value):
                raise ValueError(
                    f"adapter.{key}: only the embedding reader has it, so features.use_deep_prefix must be off"
                )
        elif self.losses.output_rms_weight and adapter.calibration != "none" and not adapter.learn_gain:
            raise ValueError(
                f"losses.output_rms_weight: adapter.calibration = {adapter.calibration!r} fixes that RMS already"
            )
        if self.anchor.chat_template and self.anchor.bos != "before":
            raise ValueError("anchor.bos: anchor.chat_template places BOS itself")
        for key in ("warmup_text_steps", "tail_text_prob"):
            if getattr(stage, key) and not self.features.use_lora:
                raise ValueError(
                    f"curriculum.end_to_end.{key}: only LoRA learns from the text (features.use_lora is off)"
                )
        return self

    @model_validator(mode="after")
    def _enough_latents(self) -> Config:
        """Latents add up, and there is a query for each of them."""
        layout = self.latent_layout
        if self.encoder.type == "backbone" or layout.total is not None:
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
