"""GGUF files as safetensors, which load in a fraction of a second: de-quantised once and kept."""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

import torch
from filelock import FileLock
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from latentwire.backbone.quiet import BAD_FILES, quietly
from latentwire.core.atomic import atomic_dir
from latentwire.core.errors import ModelError, one_line


def convert(kept: Path, label: str, gguf: Callable[[Path], Path]) -> Path:
    """De-quantise the GGUF file that gguf(scratch) gives to bf16 safetensors in the folder `kept`, once."""
    if (kept / "config.json").is_file():
        return kept
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(kept.parent / f".{kept.name}.lock"):  # a second process waits instead of doing it too
            if (kept / "config.json").is_file():
                return kept
            print(f"converting {label} to {kept} (only once, takes up to a minute)", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".gguf.") as scratch:
                model, tokenizer = _read_gguf(gguf(Path(scratch)))
                with atomic_dir(kept) as folder:
                    quietly(model.save_pretrained, folder)
                    tokenizer.save_pretrained(folder)
                    for file in folder.iterdir():
                        file.chmod(0o644)  # safetensors writes files that only their owner may read
    except BAD_FILES as error:
        raise ModelError(f"model {label!r}: its GGUF file cannot be converted: {one_line(error)}") from error
    return kept


def _read_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in bf16 and its tokenizer from a GGUF file."""
    tokenizer = quietly(AutoTokenizer.from_pretrained, path.parent, gguf_file=path.name)
    if _splits_digits(path):
        core = tokenizer.backend_tokenizer
        digits = pre_tokenizers.Digits(individual_digits=True)
        core.pre_tokenizer = pre_tokenizers.Sequence([digits, core.pre_tokenizer])
    with redirect_stderr(io.StringIO()):  # this one bar does not heed Transformers' own switch
        model = quietly(
            AutoModelForCausalLM.from_pretrained,
            path.parent,
            gguf_file=path.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),  # packed weights could not be saved
        )
    return model, tokenizer


def _splits_digits(path: Path) -> bool:
    """Whether the file asks for SmolLM's pre-tokenizer, which cuts at every digit before anything else.

    Transformers' converter knows only the GPT-2 rule behind it, and so reads white space before a number
    ("\\n\\n1. ") otherwise than the model was trained on. Metadata stands at the head of the file: key, type 8 (a
    string), length, text.
    """
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    return b"tokenizer.ggml.pre\x08\0\0\0\x06\0\0\0\0\0\0\0smollm" in head
