"""`latentwire rates`: what is left of the answers as messages get smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from latentwire.cli.files import codec_of
from latentwire.cli.options import DEFAULT_CHECKPOINT, Checkpoint, Json, Overrides, changes_of
from latentwire.core.atomic import write_bytes
from latentwire.core.errors import DataError
from latentwire.core.json_files import dump_json


def rates(
    ckpt: Checkpoint = DEFAULT_CHECKPOINT,
    codec: Annotated[
        list[str] | None,
        typer.Option(metavar="CODEC", help="May be given several times; default: all, learned ones layer by layer."),
    ] = None,
    data_path: Annotated[str | None, typer.Option("--data_path", metavar="FILE", help="Held-out file.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Number of questions.")] = 200,
    lm_bytes: Annotated[
        bool, typer.Option("--lm_bytes", help="Also the lossless limit of the model that encoder.model names.")
    ] = False,
    out: Annotated[str, typer.Option("-o", "--out", metavar="FILE", help="Where the rows go.")] = "wire_rates.json",
    as_json: Json = False,
    overrides: Overrides = None,
) -> list[dict[str, Any]]:
    """Answer the same held-out questions from messages of every codec; writes one row a codec and receiver, and a plot.

    Rows that the file has already, made with the very same, are not measured again; the others stay in it, but not in
    the plot.

    Example: latentwire rates --ckpt checkpoints/default --data_path squad_dev.json -o docs/wire_rates.json
    """
    if Path(out).suffix == ".png" or Path(out).is_dir():
        raise DataError(f"--out: {out}: a file for the rows, beside which the plot becomes a .png")
    from latentwire.checkpoint.index import find_checkpoint, load_config_of
    from latentwire.data import load_passages
    from latentwire.evaluation.rates import Rates, every_codec
    from latentwire.report.rates import plot

    folder, path = find_checkpoint(ckpt), Path(out)
    for spec in codec or []:
        codec_of(spec, folder)
    said = {"evaluation.samples": "--samples"} | ({"data.eval_path": "--data_path"} if data_path else {})
    changes = changes_of(overrides, said)
    own = {"evaluation.samples": samples} | ({"data.eval_path": data_path} if data_path else {})
    config = load_config_of(folder, changes | own)
    found = Rates(path, folder, config, load_passages(config.data, "validation", samples), lm_bytes)
    words = ["latentwire", "rates", "--ckpt", Path(ckpt).name if Path(ckpt).is_absolute() else ckpt]
    words += ["--samples", str(samples), *(["--data_path", Path(data_path).name] if data_path else [])]
    words += ["--lm_bytes"] * lm_bytes + [word for change in overrides or [] for word in ("--override", change)]
    for row in found.measure(codec or every_codec(folder), words):
        if not as_json:
            size, f1 = f"{row['bytes']:8.1f} bytes", f"F1 {row['f1']:.3f} of {row['float_f1']:.3f}"
            print(f"{row['codec']:20} {row['receiver']:16} {size}  {f1}")
    write_bytes(path.with_suffix(".png"), plot(found.rows))
    if as_json:
        print(dump_json(found.rows), end="")
    return found.rows
