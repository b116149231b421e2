"""Names that several folders go by: of LoRA adapters, and of the files in runs and checkpoints. No torch."""

from __future__ import annotations

ADAPTERS = LATENT, TEXT, TOKEN_BUDGET, LLMLINGUA = "latent", "text", "token_budget", "llmlingua"
"""A receiver's LoRA adapters: what it was tuned to read."""
ASKING = "asking"
"""The one that asks about a text instead of answering."""

CONFIG, MANIFEST, LOG = "config.json", "manifest.json", "diagnostics.jsonl"
"""Of a run: its configuration, what made it, and a line for each step."""
ORIGIN, INPUTS = "origin.json", "inputs.json"
"""Of a run: the checkpoint that it began from, and hashes of all else that it reads."""
FAILED = "failed.json"
"""Of a run of an ablation that ended in an error: what that was."""
RESULTS, TABLE, PREDICTIONS, PASSAGES = "eval.json", "eval.csv", "predictions.jsonl", "passages.jsonl"
"""Of an evaluation, in a folder of its own or in the run's."""
PREDICTION_KEYS = ("id", "question", "answers", "passage", "joint")
"""What a line of predictions.jsonl has beside what the receivers answered, by their names."""
INDEX, CARD, EXPORTED_LOG = "checkpoint.json", "README.md", "training.jsonl"
"""Of a checkpoint, the latter two of one that is passed on."""
SENDER = "sender"
"""The stem of the file of its sender's weights."""
READERS, BASELINES, CODEBOOKS = "receivers/", "baselines/", "codecs/"
"""What the stems of its other weights' files begin with: of readers with the LoRA that reads latents, of other LoRA, of
codebooks of learned codecs."""


def file_of(stem: str) -> str:
    """The weights' file of a stem, such as "receivers/gemma"."""
    return f"{stem}.safetensors"


def stem_of(file: str) -> str:
    """What stands before the ending in the name of a weights' file."""
    return file.removesuffix(".safetensors")
