"""`latentwire fuzz`: damaged and forged messages must give a `Wire` or a `WireError`, in bounded time and memory."""

from __future__ import annotations

import faulthandler
import random
import re
import struct
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Annotated, Any

import typer

from latentwire.cli.options import Json
from latentwire.core.errors import LatentWireError, WireError
from latentwire.core.json_files import dump_json
from latentwire.diagnostics.memory import peak_memory_mb
from latentwire.wire.codebook import KINDS
from latentwire.wire.codecs import CODECS
from latentwire.wire.frame import MAGIC, varint
from latentwire.wire.message import Wire, read_texts
from latentwire.wire.samples import with_sample_book

TRACED = 200
"""One message in so many is parsed with its allocations traced, which is slow."""
SLOWEST_ALLOWED = 5.0
"""Seconds for one small message after which it counts as a hang."""
HANGS, WATCHED = 60, 1000
"""Seconds that so many messages may take; then the process shows where it hangs, and ends."""
STDERR = 2
EDGES = (0x00, 0x01, 0x02, 0x7F, 0x80, 0xFE, 0xFF)


def fuzz(
    messages: Annotated[int, typer.Option(min=1, help="Messages tried.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Seed: the same messages in the same order.")] = 0,
    as_json: Json = False,
) -> dict[str, Any]:
    """Parse mutated, truncated, forged and random messages; anything but a message or a WireError ends it.

    Most of them get a checksum and a length that fit again after the damage, so that the parser behind these is
    reached. One in ten is read as part of a stream.

    Example: latentwire fuzz --messages 1000000
    """
    rng = random.Random(seed)
    whole = originals(rng)
    valid, reasons = 0, Counter[str]()
    slowest, largest, steepest = 0.0, 0, 0.0
    for data in whole:  # so that what is made once is not counted as growth
        Wire.from_bytes(data)
    memory_before, started = peak_memory_mb(), time.perf_counter()
    with _watchdog() as watch:
        for number in range(messages):
            if number % WATCHED == 0:
                watch()
            data = mutate(rng.choice(whole), whole, rng)
            traced = number % TRACED == 0
            if traced:
                tracemalloc.start()
            began = time.perf_counter()
            try:
                if number % 10 == 9:
                    for _ in read_texts(BytesIO(data + rng.choice(whole))):
                        pass
                else:
                    _ = Wire.from_bytes(data).latents
                valid += 1
            except WireError as error:
                reasons[re.sub(r"(0x\w+|\b[\da-f]{8}\b|\d+(,\d+)*)", "#", str(error).split(":")[0])] += 1
            except Exception as error:
                raise LatentWireError(f"message {number} gave {type(error).__name__}: {error}: {data.hex()}") from error
            if traced:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                largest = max(largest, peak)
                if len(data) >= 1024:
                    steepest = max(steepest, peak / len(data))
            else:
                slowest = max(slowest, time.perf_counter() - began)
            if slowest > SLOWEST_ALLOWED:
                raise LatentWireError(f"message {number} took {slowest:.1f} s: {data.hex()}")
    seconds = time.perf_counter() - started
    result = {
        "messages": messages,
        "seed": seed,
        "valid": valid,
        "refused": dict(reasons.most_common()),
        "seconds": round(seconds, 1),
        "messages_per_s": round(messages / seconds),
        "slowest_ms": round(1000 * slowest, 2),
        "peak_memory_mb": peak_memory_mb(),
        "memory_growth_mb": round(peak_memory_mb() - memory_before, 1),
        "largest_parse_bytes": largest,
        "largest_parse_over_message": round(steepest, 1),
    }
    print(dump_json(result) if as_json else _plain(result), end="")
    return result


@contextmanager
def _watchdog() -> Iterator[Callable[[], None]]:
    """What is called gives the next messages HANGS seconds from then on."""
    try:
        yield lambda: faulthandler.dump_traceback_later(HANGS, exit=True, file=STDERR)
    finally:
        faulthandler.cancel_dump_traceback_later()


def originals(rng: random.Random) -> list[bytes]:
    """Whole messages of every codec, form and version, small and larger ones."""
    out = []
    for name, codec in CODECS.items():
        settings: list[dict[str, int]] = [{}]
        if name.startswith("int"):
            settings += [{"group": 3, "scale_bits": 8}, {"group": 0, "scale_bits": 16}]
        for changed in settings:
            for count, d_z in ((1, 1), (3, 7), (9, 33)):
                z = [[rng.gauss(0, 1) for _ in range(d_z)] for _ in range(count)]
                ready = with_sample_book(codec.configured(changed), d_z)
                wire = Wire.of(z, ready, sender=rng.randbytes(8), more=rng.random() < 0.3)
                out.append(wire.to_bytes())
    z = [[rng.gauss(0, 1) for _ in range(512)] for _ in range(20)]
    story = "The keeper of the green boat lives in Orlin and plays the harp. " * 3
    out += [
        Wire.of(z, "int4", sender=bytes(8)).to_bytes(),
        *(Wire.of(z * 45, with_sample_book(CODECS[kind], 512)).to_bytes() for kind in KINDS),
        Wire.of(z[:2], "int8", text=story).to_bytes(),
        Wire.of(text="Talden").to_bytes(),
        Wire.of(text=story, more=True).to_bytes(),
        Wire.of(text="na" * 40_000).to_bytes(),
    ]
    payload = struct.pack("<6e", *(rng.gauss(0, 1) for _ in range(6)))
    head = MAGIC + struct.pack("<BBHH", 1, 2, 2, 3)
    return [*out, head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload]


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Damage a message in one to four ways, and mostly make its length and checksum fit again."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randint(0, 200))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 16)))
        kind = rng.randrange(7)
        if kind == 0:
            data = data[:at] + bytes(rng.randrange(256) for _ in data[at:end]) + data[end:]
        elif kind == 1:
            data = data[:at] + bytes(rng.choice(EDGES) for _ in data[at:end]) + data[end:]
        elif kind == 2:
            data = data[:at] + data[end:]
        elif kind == 3:
            data = data[:at] + rng.randbytes(rng.randint(1, 8)) + data[at:]
        elif kind == 4:
            data = data[:at]
        elif kind == 5:  # a number in the fields around the payload, where most of the parser's decisions are
            at = rng.randrange(min(40, len(data) + 1))
            data = data[:at] + bytes([rng.choice(EDGES)]) + data[at + 1 :]
        else:
            other = rng.choice(others)
            data = data[:at] + other[rng.randrange(len(other)) :]
    return reseal(data) if rng.random() < 0.75 else data


def reseal(data: bytes) -> bytes:
    """The same bytes with the length and checksum that belong to them; too short ones stay as they are."""
    if len(data) < 14:
        return data
    if data[4] == 1:
        crc = zlib.crc32(data[14:], zlib.crc32(data[:10]))
        return data[:10] + struct.pack("<I", crc) + data[14:]
    at = 6
    while at < 11 and data[at] & 0x80:
        at += 1
    body = data[at + 1 : -4]
    data = MAGIC + data[4:6] + varint(len(body)) + body
    return data + struct.pack("<I", zlib.crc32(data))


def _plain(result: dict[str, Any]) -> str:
    lines = [
        f"{result['messages']} messages in {result['seconds']} s ({result['messages_per_s']} a second): "
        f"{result['valid']} valid, the others refused",
        f"slowest {result['slowest_ms']} ms; memory {result['peak_memory_mb']} MB, grown by "
        f"{result['memory_growth_mb']} MB; largest parse {result['largest_parse_bytes']} bytes, at most "
        f"{result['largest_parse_over_message']} times a message of 1 KiB or more",
    ]
    lines += [f"{count:9}  {reason}" for reason, count in result["refused"].items()]
    return "\n".join(lines) + "\n"
