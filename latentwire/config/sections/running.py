"""What a run writes, what it measures, and on what machine."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, NonNegativeInt, PositiveInt

from latentwire.config.sections.base import Section, flag

ModeName = Literal["text", "text_tuned", "latent", "token_budget", "no_context", "embedding_replay", "embedding_anchor"]
RivalName = Literal["llmlingua", "kvpress"]
DEFAULT_MODES: tuple[ModeName, ...] = get_args(ModeName)[:-1]


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
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = Field(
        "none", description="A tracker that gets the same lines, each stage as a run of its own."
    )


class CheckpointConfig(Section):
    """Where a run writes and what it keeps."""

    runs_dir: str = Field("runs", description="Folder of all runs.")
    init_from: str | None = Field(
        None,
        description="Start from this checkpoint, in place of slot tuning and the closed form; receivers that it lacks "
        "start with both, the latter with its encoder fixed.",
    )
    every_steps: PositiveInt = Field(100, description="Steps between two resumable checkpoints.")
    keep: PositiveInt = Field(2, description="Step checkpoints kept; epoch checkpoints are always kept.")
    tuned_cache: str | None = Field(
        None, description="Where slot-tuned receivers and tuned baselines are kept; default: the user's cache."
    )


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
    candidates: PositiveInt = Field(
        1,
        description="Answers made for each question, begun with its likeliest first tokens, of which the one that is "
        "closest to all is taken (minimum Bayes risk); 1: the greedy answer.",
        json_schema_extra=flag("eval_candidates"),
    )
    bootstrap: PositiveInt = Field(2000, description="Resamples behind each 95 % interval.")
    codec: str = Field(
        "fp16",
        pattern=r"^\w+(:\w+=\d+(,\w+=\d+)*)?$",
        description="How latents are put into bytes, here and by `latentwire encode`: fp32, fp16, bf16, int8, int6 or "
        "int4, the last three with settings if need be, such as int4:group=32,scale_bits=8; rvq, fsq or aq where there "
        "is a codebook (section codec), such as rvq:layers=2.",
    )
    lm_bytes: bool = Field(
        False,
        description="Also measure the lossless limit: bytes of the text under the whole LM that encoder.model "
        "names, which is loaded for it.",
    )
    rivals: list[RivalName] = Field(
        [],
        description="Other methods to measure at the positions that the latents take: llmlingua, kvpress. With "
        "llmlingua, a run also tunes a LoRA on what it selects.",
        json_schema_extra=flag("eval_rivals"),
    )
    llmlingua_model: str = Field("smollm2-135m", description="The model by which llmlingua selects tokens.")
    press: Literal["expected_attention", "knorm", "keydiff"] = Field(
        "expected_attention", description="By what kvpress evicts.", json_schema_extra=flag("eval_press")
    )
    latency_samples: int = Field(8, ge=0, description="Questions timed one by one; 0 skips it.")
    attention_examples: NonNegativeInt = Field(
        8, description="Questions for which the attention that answers pay to each latent is kept, for reports."
    )


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
    threads: PositiveInt | None = Field(None, le=1024, description="CPU threads; default: what torch finds.")
    seed: int = Field(0, ge=0, lt=1 << 32, description="Seed of initialisation and of batch order.")
    cache_features: bool = Field(True, description="Keep the frozen sender's window features in memory.")
