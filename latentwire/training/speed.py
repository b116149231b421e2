"""How fast a machine trains: tokens a second of each stage and receiver, and where a step's time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from latentwire.backbone.devices import resolve_device
from latentwire.config import Config
from latentwire.core.errors import DataError
from latentwire.core.manifest import cpu_model
from latentwire.core.seeds import seed_everything
from latentwire.data import load_passages
from latentwire.diagnostics.timing import timed
from latentwire.model.system import LatentWire
from latentwire.training.material import prepare_fitting
from latentwire.training.stages.end_to_end import EndToEnd
from latentwire.training.stages.slot_tuning import SlotTuning


@dataclass
class StageSpeed:
    """Means over the timed steps. Shares are of the step's time; gemm_share is of the machine's measured rate."""

    stage: str
    receiver: str
    tokens_per_s: float
    step_s: float
    data: float
    forward: float
    backward: float
    optimizer: float
    tflops: float
    gemm_share: float


def training_speed(config: Config, steps: int) -> dict[str, Any]:
    """The machine, and a `StageSpeed` of so many timed steps for each stage and receiver."""
    seed_everything(config.system.seed)
    passages = load_passages(config.data, "train", config.data.samples or 2000)
    system = LatentWire.build(config)
    prepared = [p for p in (prepare_fitting(system, config, passage) for passage in passages) if p is not None]
    if not prepared:
        raise DataError(
            f"data.max_context_tokens: no passage has at most {config.data.max_context_tokens} tokens and fits sender "
            "and receivers"
        )
    dtype = next(iter(system.receivers.values())).lm.dtype
    rate = gemm_rate(dtype, config.system.device)
    rows = []
    for name, receiver in system.receivers.items():
        texts = [texts[name] for _, texts in prepared]
        for reads in ("latent", "text") if config.features.use_lora else ():
            rows.append(time_stage(SlotTuning(receiver, texts, config, reads), range(steps + 1), rate))
    module = EndToEnd(system, prepared, config)
    module.encodes_once = False  # each receiver's step is timed whole, the sender's part of it included
    count = len(system.receivers)
    for turn in range(count):
        rows.append(time_stage(module, range(turn, (steps + 1) * count, count), rate))
    return {
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "gemm_tflops": rate,
        "stages": [asdict(r) for r in rows],
    }


def gemm_rate(dtype: torch.dtype, device: str, size: int = 2048, repeats: int = 8) -> float:
    """TFLOP/s of a square matrix product: the best of some repeats."""
    a, b = (torch.randn(size, size).to(resolve_device(device), dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        (a @ b)[0, 0].item()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds) / 1e12


def time_stage(module: Any, indices: range, rate: float) -> StageSpeed:
    """Time a stage's micro-batches; the first one only warms up, the last one is run again to count its FLOPs."""
    if isinstance(module, EndToEnd):  # the sender's features are kept from their first use on: not a step's cost
        for index in indices:
            module.features(module.batch(index)[1])
    else:
        for index in indices:  # and so is which tokens stand for those that the sender reads
            _ = [text.phase_tokens for text in module.batch(index).texts]
    parameters = [p for g in module.parameter_groups() for p in g.parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    spent = dict.fromkeys(("data", "forward", "backward", "optimizer"), 0.0)
    tokens, last_seconds = 0, 0.0
    reader = ""
    for number, index in enumerate(indices):
        parts: dict[str, float] = {}
        batch = _timed(parts, "data", partial(module.batch, index))
        output = _timed(parts, "forward", partial(module.forward, batch))
        _timed(parts, "backward", output.loss.backward)
        _timed(parts, "optimizer", optimizer.step)
        optimizer.zero_grad(set_to_none=True)
        if number:
            spent = {key: spent[key] + parts[key] for key in spent}
            tokens += output.tokens
            reader = output.receiver
            last_seconds = sum(parts.values())
    with FlopCounterMode(display=False) as counter:
        module.forward(module.batch(indices[-1])).loss.backward()
    optimizer.zero_grad(set_to_none=True)
    flops = counter.get_total_flops()
    total, steps = sum(spent.values()), len(indices) - 1
    tflops = flops / last_seconds / 1e12
    return StageSpeed(
        module.name.split("/")[0],
        f"{reader}{'' if module.name == 'end_to_end' else ' ' + module.reads}",
        tokens / total,
        total / steps,
        spent["data"] / total,
        spent["forward"] / total,
        spent["backward"] / total,
        spent["optimizer"] / total,
        tflops,
        tflops / rate,
    )


def _timed(parts: dict[str, float], name: str, call: Callable[[], Any]) -> Any:
    out, parts[name] = timed(call)
    return out
