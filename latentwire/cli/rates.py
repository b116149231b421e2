"""`latentwire rates`: what is left of the answers as messages get smaller."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from latentwire.cli.files import codec_of
from latentwire.cli.options import DEFAULT_CHECKPOINT, Checkpoint, Json, Overrides
from latentwire.config.load import parse_overrides
from latentwire.core.atomic import make_folder, write_bytes
from latentwire.core.errors import ConfigError, DataError
from latentwire.core.json_files import dump_json, read_json, write_json
from latentwire.core.manifest import git_state


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
    from latentwire.checkpoint.tensors import read_info
    from latentwire.core.hashing import stable_hash
    from latentwire.data import data_fingerprint, load_passages
    from latentwire.evaluation.answering import encode_items
    from latentwire.evaluation.evaluate import lossless_limits
    from latentwire.evaluation.rates import FLOAT, rate
    from latentwire.model.pretrained import load_checkpoint
    from latentwire.report.rates import plot

    folder, path = find_checkpoint(ckpt), Path(out)
    for spec in codec or []:
        codec_of(spec, folder)
    changes = parse_overrides(overrides)
    own = {"evaluation.samples": samples} | ({"data.eval_path": data_path} if data_path else {})
    for key in sorted(changes.keys() & own):
        option = "--samples" if key == "evaluation.samples" else "--data_path"
        raise ConfigError(f"--override {key}: {option} says that here")
    config = load_config_of(folder, changes | own)
    passages = load_passages(config.data, "validation", samples)
    git = git_state()
    files = read_info(folder)["files"]
    how = {"config": config.model_dump(mode="json", exclude={"checkpoint", "diagnostics"}), "checkpoint": files}
    how |= {"lm_bytes": lm_bytes, "data": data_fingerprint(passages)}
    asked = sum(len(passage.questions) for passage in passages)
    same = {"samples": asked, "checkpoint": stable_hash(files)[:16], "made_with": stable_hash(how)[:16]}
    known = read_json(path) if path.is_file() else []
    if not isinstance(known, list) or not all(isinstance(row, dict) for row in known):
        raise DataError(f"{path}: not a list of rows, so it is left as it is; choose another --out")
    others = [row for row in known if not row.items() >= same.items()]  # of other checkpoints or questions: kept
    rows = [row for row in known if row not in others]
    floats = {row["receiver"]: row["f1"] for row in rows if row["codec"] == FLOAT}
    wanted = dict.fromkeys([FLOAT, *(codec or _all(folder))])
    missing = [spec for spec in wanted if not any(row["codec"] == spec for row in rows)]
    make_folder(path.parent)
    system = load_checkpoint(folder, config) if missing else None
    items = encode_items(system, passages, FLOAT) if system else []
    lossless = lossless_limits(config, passages) if missing and lm_bytes else None
    words = ["latentwire", "rates", "--ckpt", Path(ckpt).name if Path(ckpt).is_absolute() else ckpt]
    words += ["--samples", str(samples), *(["--data_path", Path(data_path).name] if data_path else [])]
    words += ["--lm_bytes"] * lm_bytes + [word for change in overrides or [] for word in ("--override", change)]
    for spec in missing:
        assert system is not None
        command = shlex.join([*words, "--codec", spec])
        for row in rate(system, items, spec, config, lossless):
            float_f1 = floats.setdefault(row["receiver"], row["f1"])  # FLOAT comes first
            rows.append(row | {"float_f1": float_f1, "command": command, "commit": git and git["commit"]} | same)
            if not as_json:
                print(f"{spec:20} {row['receiver']:16} {row['bytes']:8.1f} bytes  F1 {row['f1']:.3f} of {float_f1:.3f}")
        write_json(path, others + rows)
    write_bytes(path.with_suffix(".png"), plot(rows))
    if as_json:
        print(dump_json(rows), end="")
    return rows


def _all(folder: Path) -> list[str]:
    """Every codec; learned ones that the checkpoint has codebooks of, in each number of layers."""
    from latentwire.checkpoint.parts import load_codebooks
    from latentwire.wire.codecs import CODECS, LearnedCodec

    plain = [name for name, codec in CODECS.items() if not isinstance(codec, LearnedCodec)]
    books = load_codebooks(folder)
    return plain + [f"{kind}:layers={n + 1}" for kind, book in books.items() for n in range(len(book.layers))]
