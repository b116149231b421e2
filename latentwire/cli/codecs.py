"""`latentwire codecs`: how small, how exact and how fast every codec is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer

from latentwire.cli.options import Json
from latentwire.core.errors import ConfigError
from latentwire.core.json_files import dump_json
from latentwire.core.manifest import cpu_model
from latentwire.wire.codebook import KINDS, Codebook
from latentwire.wire.codecs import CODECS, LearnedCodec, parse_codec
from latentwire.wire.codecs.learned import MOST_LATENTS
from latentwire.wire.message import Wire
from latentwire.wire.samples import with_sample_book

MOST_NUMBERS = 1 << 27
"""Latents of so many numbers take half a GB."""


def codecs(
    codec: Annotated[
        list[str] | None, typer.Option(metavar="CODEC", help="Only this one; may be given several times.")
    ] = None,
    latents: Annotated[int, typer.Option(min=1, max=65_535, help="Latents of a message.")] = 16,
    d_z: Annotated[int, typer.Option("--d_z", min=1, max=65_535, help="Width of a latent.")] = 1408,
    ckpt: Annotated[
        str | None, typer.Option(metavar="DIR", help="Learned codecs with the codebooks of this checkpoint.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, max=3600.0, help="Time spent on each codec, each way.")] = 1.0,
    as_json: Json = False,
) -> dict[str, Any]:
    """Measure encoding and decoding of whole messages, frame and checksum included.

    Latents are drawn from the normal distribution with variance 1, so that error and size of learned codecs mean
    nothing. Their codebooks are those of --ckpt, or small ones drawn by chance, which are many times faster. They are
    left out of the list where there is no codebook, or a message of theirs cannot hold so many latents. MB are 10**6
    bytes of latents in fp32, so that the rates of codecs compare; the error is the root mean square over dimensions.

    Example: latentwire codecs --codec int4 --codec int4:group=128,scale_bits=16
    """
    if latents * d_z > MOST_NUMBERS:
        raise ConfigError(f"--latents, --d_z: {latents * d_z:,} numbers are more than the {MOST_NUMBERS:,} to draw")
    books = _trained_books(ckpt, d_z) if ckpt else None
    there = KINDS if books is None else sorted(books)
    usual = [name for name in CODECS if name not in KINDS or (name in there and latents <= MOST_LATENTS)]
    z = np.random.default_rng(0).standard_normal((latents, d_z)).astype(np.float32)
    rows = []
    for chosen in list(map(parse_codec, codec or usual)):  # what is wrong with the last one is said before the first
        if books is not None and isinstance(chosen, LearnedCodec):
            chosen = chosen.with_book(books.get(chosen.name))
        chosen = with_sample_book(chosen, d_z)
        data = Wire.of(z, chosen).to_bytes()
        got = Wire.from_bytes(data).latents
        assert got is not None
        rates = {
            "encode": _per_second(lambda chosen=chosen: Wire.of(z, chosen).to_bytes(), seconds),  # type: ignore[misc]
            "decode": _per_second(lambda data=data: Wire.from_bytes(data).latents, seconds),  # type: ignore[misc]
        }
        rows.append(
            {
                "codec": str(chosen),
                "bytes": len(data),
                "bits_per_dimension": 8 * len(data) / z.size,
                "rms_error": float(np.sqrt(np.square(got - z, dtype=np.float64).mean())),
                **{f"{way}_messages_per_s": rate for way, rate in rates.items()},
                **{f"{way}_mb_per_s": rate * z.nbytes / 1e6 for way, rate in rates.items()},
            }
        )
    result = {"cpu": cpu_model(), "latents": latents, "d_z": d_z, "codecs": rows}
    print(dump_json(result) if as_json else _table(result), end="")
    return result


def _trained_books(ckpt: str, d_z: int) -> dict[str, Codebook]:
    from latentwire.checkpoint.index import find_checkpoint
    from latentwire.checkpoint.parts import load_codebooks

    folder = find_checkpoint(ckpt)
    books = load_codebooks(folder)
    for name, book in books.items():
        if book.d_z != d_z:
            raise ConfigError(f"--d_z: {d_z}, but the codebook of {name!r} in {folder} is for latents of {book.d_z}")
    return books


def _per_second(call: Callable[[], Any], seconds: float) -> float:
    """Calls a second over at least so many seconds and one call, after one that is not timed."""
    call()
    count, started = 0, time.perf_counter()
    while not count or time.perf_counter() - started < seconds:
        call()
        count += 1
    return count / (time.perf_counter() - started)


def _table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['cpu']}; messages of {result['latents']} latents of width {result['d_z']}",
        f"{'codec':30} {'bytes':>8} {'bits/dim':>8} {'error':>8} {'encode MB/s':>12} {'msg/s':>8} "
        f"{'decode MB/s':>12} {'msg/s':>8}",
    ]
    for row in result["codecs"]:
        lines.append(
            f"{row['codec']:30} {row['bytes']:8} {row['bits_per_dimension']:8.3f} {row['rms_error']:8.5f} "
            f"{row['encode_mb_per_s']:12.1f} {row['encode_messages_per_s']:8.0f} "
            f"{row['decode_mb_per_s']:12.1f} {row['decode_messages_per_s']:8.0f}"
        )
    return "\n".join(lines) + "\n"
