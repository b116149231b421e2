"""`latentwire inspect`: what is in messages, without any model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from latentwire.cli.files import opened
from latentwire.cli.options import Json
from latentwire.core.errors import WireError
from latentwire.core.json_files import dump_json
from latentwire.wire.frame import read_frames
from latentwire.wire.message import Wire


def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Messages; - is standard input.")] = "-",
    as_json: Json = False,
) -> list[dict[str, Any]]:
    """Check messages and print what their frames say. Needs neither a checkpoint nor a model.

    Example: latentwire inspect story.lw --json
    """
    rows = []
    with opened(file) as stream:
        try:
            for data in read_frames(stream):
                rows.append(describe(data))
                if not as_json:
                    print(_plain(rows[-1]), flush=True)
        finally:  # what comes before a damaged message is shown
            if as_json and rows:
                print(dump_json(rows), end="")
        if not rows:
            raise WireError("no message in it")
        if rows[-1]["more"]:
            raise WireError("the stream ends inside a text: its last message goes on in one that is not there")
    return rows


def describe(data: bytes) -> dict[str, Any]:
    """The fields of one message, as plain values."""
    wire = Wire.from_bytes(data)
    frame, section = wire.frame, wire.frame.latents
    latents = section and {
        "codec": str(wire.codec),
        "codebook": frame.codebook and frame.codebook.hex(),
        "count": section.count,
        "d_z": section.d_z,
        "layers": [len(layer) for layer in section.layers],
        "bits_per_dimension": 8 * (len(data) - len(frame.text or b"")) / (section.count * section.d_z),
    }
    text = frame.text and {"characters": len(wire.text or ""), "bytes": len(frame.text)}
    return {
        "version": frame.version,
        "bytes": len(data),
        "sender": frame.sender and frame.sender.hex(),
        "more": frame.more,
        "latents": latents,
        "text": text,
    }


def _plain(row: dict[str, Any]) -> str:
    parts = [f"version {row['version']}, {row['bytes']} bytes, sender {row['sender'] or 'unknown'}"]
    if z := row["latents"]:
        book = f", codebook {z['codebook']}" if z["codebook"] else ""
        parts.append(
            f"{z['count']} latents of {z['d_z']} in {z['codec']}{book}, layers of {z['layers']} bytes, "
            f"{z['bits_per_dimension']:.2f} bits a dimension"
        )
    if row["text"]:
        parts.append(f"text of {row['text']['characters']} characters in {row['text']['bytes']} bytes")
    return "; ".join(parts) + ("; goes on in the next message" if row["more"] else "")
