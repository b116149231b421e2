"""`latentwire bench`: training throughput by stage and receiver."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any

import typer

from latentwire.cli.options import ConfigFile, Json, Overrides
from latentwire.cli.run import invoke, run_and_exit
from latentwire.config import load_config
from latentwire.config.flags import schema_options
from latentwire.core.errors import DataError
from latentwire.core.json_files import dump_json
from latentwire.core.manifest import cpu_model
from latentwire.diagnostics.timing import timed


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


@schema_options
def command(
    *,
    config_path: ConfigFile = None,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps a stage and receiver.")] = 6,
    as_json: Json = False,
    flags: dict[str, Any],
) -> dict[str, Any]:
    """Measure tokens/s of slot tuning, text tuning and end-to-end tuning, and where a step's time goes.

    The FLOPs of a step are counted by torch on one step more; the machine's rate is that of a 2048-wide matrix
    product in the compute type, measured in the same run.

    Example: latentwire bench --config configs/smoke/lora.json --steps 4
    """
    import torch

    from latentwire.core.seeds import seed_everything
    from latentwire.data import load_passages
    from latentwire.model.system import LatentWire
    from latentwire.training.stages.end_to_end import EndToEnd
    from latentwire.training.stages.slot_tuning import SlotTuning

    config = load_config(config_path, overrides, flags)
    seed_everything(config.system.seed)
    passages = load_passages(config.data, "train", config.data.samples or 2000)
    system = LatentWire.build(config)
    short = [p for p in passages if system.sender.tokenize(p.context).tokens <= config.data.max_context_tokens]
    if not short:
        raise DataError(f"data.max_context_tokens: no passage has at most {config.data.max_context_tokens} tokens")
    prepared = [system.prepare(p) for p in short]
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
    result = {
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "gemm_tflops": rate,
        "stages": [asdict(r) for r in rows],
    }
    print(dump_json(result) if as_json else table(result), end="")
    return result


def gemm_rate(dtype: Any, device: str, size: int = 2048, repeats: int = 8) -> float:
    """TFLOP/s of a square matrix product: the best of some repeats."""
    import torch

    from latentwire.backbone.devices import resolve_device

    a, b = (torch.randn(size, size).to(resolve_device(device), dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        (a @ b)[0, 0].item()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds) / 1e12


def time_stage(module: Any, indices: range, rate: float) -> StageSpeed:
    """Time a stage's micro-batches; the first one only warms up, the last one is run again to count its FLOPs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from latentwire.training.stages.end_to_end import EndToEnd

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


def table(result: dict[str, Any]) -> str:
    """The result as aligned lines."""
    lines = [
        f"{result['cpu']}, {result['threads']} threads, {result['dtype']} matrix product "
        f"{result['gemm_tflops']:.2f} TFLOP/s",
        f"{'stage':12} {'receiver reads':26} {'tokens/s':>9} {'step s':>7} {'data':>5} {'fwd':>5} {'bwd':>5} "
        f"{'opt':>5} {'TFLOP/s':>8} {'of GEMM':>8}",
    ]
    for r in result["stages"]:
        lines.append(
            f"{r['stage']:12} {r['receiver']:26} {r['tokens_per_s']:9.0f} {r['step_s']:7.2f} {r['data']:5.0%} "
            f"{r['forward']:5.0%} {r['backward']:5.0%} {r['optimizer']:5.0%} {r['tflops']:8.2f} {r['gemm_share']:8.0%}"
        )
    return "".join(f"{line}\n" for line in lines)


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; returns what --json prints."""
    result: dict[str, Any] = invoke("bench", args)
    return result


if __name__ == "__main__":
    run_and_exit(main)
