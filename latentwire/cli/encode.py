"""`latentwire encode`: text to messages."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from latentwire.cli.files import codec_of, label, text_of
from latentwire.cli.options import DEFAULT_CHECKPOINT, Checkpoint, Json, Overrides
from latentwire.cli.run import plural
from latentwire.config.load import parse_overrides
from latentwire.core.atomic import write_bytes
from latentwire.core.errors import ConfigError, DataError
from latentwire.core.json_files import dump_json

if TYPE_CHECKING:
    from latentwire.wire.message import Wire


def encode(
    files: Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Texts; - is standard input.")] = None,
    out: Annotated[str, typer.Option("-o", "--out", metavar="FILE", help="Where it goes; - is standard output.")] = "-",
    ckpt: Checkpoint = DEFAULT_CHECKPOINT,
    codec: Annotated[
        str | None, typer.Option(metavar="CODEC", help="Such as int8 or int4:group=64; default: evaluation.codec.")
    ] = None,
    text: Annotated[
        Literal["none", "beside", "only"],
        typer.Option(help="Send the text beside the latents, or alone, for receivers that cannot read these."),
    ] = "none",
    lines: Annotated[bool, typer.Option("--lines", help="Every line is a text of its own.")] = False,
    chunk: Annotated[
        int | None, typer.Option(min=1, metavar="TOKENS", help="Most tokens in a message; default: as in training.")
    ] = None,
    as_json: Json = False,
    overrides: Overrides = None,
) -> dict[str, int]:
    """Encode texts into messages, one behind the other; a longer text takes several.

    Example: latentwire encode story.txt --codec int8 -o story.lw
    """
    from latentwire.checkpoint.index import find_checkpoint
    from latentwire.wire.message import Wire

    if text == "only":
        for option, value in (("--codec", codec), ("--chunk", chunk), ("--override", overrides)):
            if value is not None:
                raise ConfigError(f"{option}: does nothing with --text only, which sends no latents")
    names = files or ["-"]
    _check_files(names, out)
    if text != "only":
        folder = find_checkpoint(ckpt)
        if codec is not None:
            codec_of(codec, folder)
    if out == "-" and as_json:
        raise DataError("--json: standard output is where the message goes; name a file with --out")
    if out == "-" and sys.stdout.isatty():
        raise DataError("--out: a message is binary; name a file, or send standard output to one")
    if text == "only":
        read: Callable[[str], Iterator[Sequence[Iterable[str]]]] = _lines if lines else _whole
        texts = chain.from_iterable(together for name in names for together in read(name))
        wires: Iterator[Wire] = (Wire.of(text="".join(pieces)) for pieces in texts)
    else:
        wires = _send(names, lines, folder, overrides or [], codec=codec, with_text=text == "beside", chunk=chunk)
    counts = {"messages": 0, "bytes": 0}
    written = []
    for data in (wire.to_bytes() for wire in wires):
        counts = {"messages": counts["messages"] + 1, "bytes": counts["bytes"] + len(data)}
        if out == "-":
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            written.append(data)
    if not counts["messages"]:
        raise DataError(f"{', '.join(map(label, names))}: no text in it")
    if out != "-":
        write_bytes(out, b"".join(written))
        if as_json:
            print(dump_json(counts), end="")
            return counts
        print(f"{out}: {plural(counts['messages'], 'message')}, {counts['bytes']} bytes")
    return counts


def _check_files(names: Sequence[str], out: str) -> None:
    """DataError where there is no text to read, or no place for the messages."""
    if out != "-" and Path(out).is_dir():
        raise DataError(f"--out: {out} is a folder; the messages go into a file")
    for name in names:
        if name != "-" and not Path(name).exists():
            raise DataError(f"{name}: no such file")
        if Path(name).is_dir():
            raise DataError(f"{name}: a folder (latentwire index compresses the texts in one)")
        if out != "-" and _is_read(name, Path(out)):
            raise DataError(f"--out: {out} is a text that is read; the messages would take its place")


def _is_read(name: str, out: Path) -> bool:
    """Whether a text comes from a file, under whatever name."""
    try:
        text = os.fstat(sys.stdin.fileno()) if name == "-" else os.stat(name)
        return out.is_file() and os.path.samestat(text, out.stat())
    except OSError:  # standard input is no file at all
        return False


def _whole(name: str) -> Iterator[list[Iterable[str]]]:
    """The text of a file, in pieces, if there is any."""
    pieces = text_of(name)
    start = ""
    while not start.strip() and (piece := next(pieces, None)) is not None:
        start += piece
    if start.strip():
        yield [chain([start], pieces)]


def _lines(name: str) -> Iterator[list[str]]:
    """The lines of a file, those together that came together."""
    rest = ""
    for piece in text_of(name):
        *whole, rest = (rest + piece).split("\n")
        yield [line.strip() for line in whole if line.strip()]
    yield [rest.strip()] if rest.strip() else []


def _send(names: Sequence[str], lines: bool, checkpoint: Path, overrides: list[str], **how: Any) -> Iterator[Wire]:
    from latentwire.model.sender import Sender

    sender = Sender.from_pretrained(checkpoint, parse_overrides(overrides))
    for name in names:
        if lines:
            for together in _lines(name):
                yield from chain.from_iterable(sender.encode_long(together, **how))
        else:
            for (pieces,) in _whole(name):
                yield from sender.encode_stream(pieces, **how)
