"""`latentwire bench`: training throughput by stage and receiver."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from latentwire.cli.options import ConfigFile, Json, Overrides
from latentwire.config import load_config
from latentwire.config.flags import schema_options
from latentwire.core.errors import ConfigError
from latentwire.core.json_files import dump_json


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
    from latentwire.training.speed import training_speed

    config = load_config(config_path, overrides, flags)
    if config.checkpoint.init_from:
        raise ConfigError("checkpoint.init_from: leave it out; what is timed are untrained weights of the same shape")
    result = training_speed(config, steps)
    print(dump_json(result) if as_json else table(result), end="")
    return result


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
