"""`latentwire index`: a corpus as a data set of messages."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from latentwire.cli.extras import extras
from latentwire.cli.files import codec_of
from latentwire.cli.options import DEFAULT_CHECKPOINT, Checkpoint, Json, Overrides, output_folder
from latentwire.cli.run import plural
from latentwire.config.load import parse_overrides
from latentwire.core.errors import ConfigError
from latentwire.core.json_files import dump_json
from latentwire.data.documents import ROW_FILES, read_documents


def index(
    documents: Annotated[Path, typer.Argument(metavar="DOCS", help="Folder of texts, .jsonl, .parquet or text file.")],
    out: Annotated[Path, output_folder("Where the index goes, or is.")],
    ckpt: Checkpoint = DEFAULT_CHECKPOINT,
    codec: Annotated[str | None, typer.Option(metavar="CODEC", help="Default: evaluation.codec.")] = None,
    text: Annotated[
        Literal["none", "beside"], typer.Option(help="Keep the texts beside their latents, or latents alone.")
    ] = "none",
    lines: Annotated[bool, typer.Option("--lines", help="Every line of a text file is a document.")] = False,
    text_key: Annotated[
        str | None, typer.Option("--text_key", metavar="KEY", help="Key or column of the text. [text]")
    ] = None,
    id_key: Annotated[str | None, typer.Option("--id_key", metavar="KEY", help="Key or column of the id. [id]")] = None,
    engine: Annotated[
        Literal["process", "ray"], typer.Option(help="Encode in this process, or with workers on a Ray cluster.")
    ] = "process",
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="On Ray; default: one for each GPU, else for each CPU.")
    ] = None,
    as_json: Json = False,
    overrides: Overrides = None,
) -> dict[str, Any]:
    """Compress a corpus once, to answer questions on it without its texts.

    The same command again goes on where it was stopped, and later encodes what has changed.

    Example: latentwire index articles/ -o articles.index --codec int8
    """
    from tqdm import tqdm

    from latentwire.checkpoint.index import find_checkpoint, load_config_of
    from latentwire.model.sender import Sender

    rows = documents.suffix.lower() in ROW_FILES
    if lines and rows:
        raise ConfigError(f"--lines: every row of {documents} is a document already")
    if (text_key or id_key) and documents.is_file() and not rows:
        raise ConfigError(f"{'--text_key' if text_key else '--id_key'}: {documents} is a text, which has no keys")
    with extras():
        from latentwire.serving.build_index import build_index, recipe
    if workers and engine != "ray":
        raise ConfigError("--workers: only with --engine ray")
    if engine == "ray":
        with extras():
            from latentwire.serving.on_ray import ray_engine
    folder = find_checkpoint(ckpt)
    changes = parse_overrides(overrides)
    config = load_config_of(folder, changes)
    if codec is not None:
        codec_of(codec, folder)
    made_with = recipe(folder, codec, text, changes)
    started = time.perf_counter()
    with tqdm(unit="document", disable=None) as bar:
        info = build_index(
            read_documents(documents, lines=lines, text_key=text_key or "text", id_key=id_key or "id"),
            out,
            partial(Sender.from_pretrained, folder.resolve(), changes),
            made_with,
            with_text=text == "beside",
            engine=ray_engine(workers, config.system.device) if engine == "ray" else map,
            progress=bar.update,
        )
    info["seconds"] = time.perf_counter() - started
    if as_json:
        print(dump_json(info), end="")
    else:
        count = info["documents"]
        print(
            f"{out}: {plural(count, 'document')}, {info['encoded']} of them encoded now, "
            f"{info['wire_bytes'] / count:.0f} bytes each in {info['codec']}, {info['seconds']:.1f} s"
        )
    return info
