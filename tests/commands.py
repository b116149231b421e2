"""Commands as tests call them, in this process and on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from latentwire.cli.run import invoke, run_and_exit
from tests import ROOT

STORY = "Mira lives in Orlin near the river. She sells red lamps on the hill.\n"


add_receiver_main = partial(invoke, "add-receiver")
bench_main = partial(invoke, "bench")
demo_main = partial(invoke, "demo")
export_main = partial(invoke, "export")
questions_main = partial(invoke, "questions")


def arguments(folder: Path, **more: object) -> list[str]:
    """A run of seconds: two tiny receivers, every stage."""
    flags: dict[str, object] = {
        "config": ROOT / "configs" / "smoke" / "lora.json",
        "llama_id": folder / "llama",
        "qwen_id": folder / "qwen3",
        "sender_id": folder / "llama",
        "dtype": "float32",
        "encoder_layers": "0,2",
        "d_z": 16,
        "samples": 24,
        "batch_size": 2,
        "max_context_tokens": 400,
        "slot_tuning_max_steps": 2,
        "baselines_max_steps": 1,
        "end_to_end_max_steps": 4,
        "closed_form_passages": 4,
        "closed_form_held_out": 2,
        "eval_samples": 6,
        "latency_samples": 1,
        "max_new_tokens": 3,
        "tuned_cache": folder / "cache",
    } | more
    return [*(word for key, value in flags.items() for word in (f"--{key}", str(value))), "--use_deep_prefix"]


def on_tiny_models(
    config: Path, models: Path, out: Path, receivers: Mapping[str, str], more: Mapping[str, Any] | None = None
) -> list[str]:
    """A configuration's run in `out`, as it stands but for the models, their sizes, the evaluation's, and `more` keys.

    models: a folder of tiny models; receivers: the name there of each receiver's.
    """
    overrides: dict[str, Any] = {
        "model.receivers": {name: str(models / model) for name, model in receivers.items()},
        "model.dtype": "float32",
        "encoder.model": str(models / "llama"),
        "encoder.layers": [0, 2],
        "encoder.d_z": 16,
        "data.max_context_tokens": 400,
        "evaluation.samples": 6,
        "evaluation.max_new_tokens": 3,
    }
    return ["--config", str(config), "--out_dir", str(out), *override_words(overrides | dict(more or {}))]


def override_words(values: Mapping[str, Any]) -> list[str]:
    """The words that give dotted keys of a configuration other values."""
    return [word for key, value in values.items() for word in ("--override", f"{key}={json.dumps(value)}")]


def fails(main: Callable[[list[str]], Any], words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command ends, after exit status 2."""
    with pytest.raises(SystemExit) as stop:
        run_and_exit(lambda: main(words))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.strip().splitlines()[-1]
