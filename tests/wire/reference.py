"""A reader of messages written from docs/wire.md alone: plain Python, no numpy, nothing of the package."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import zstandard

MASK = (1 << 24) - 1
FLOATS = {1: "<f", 2: "<e", 4: None}
BITS = {3: 8, 5: 6, 6: 4}


def read(data: bytes, books: dict[str, Any]) -> dict[str, Any]:
    assert data[:4] == b"LWIR"
    if data[4] == 1:
        _, _, codec, count, d_z, crc = struct.unpack_from("<4sBBHHI", data)
        assert crc == zlib.crc32(data[:10] + data[14:])
        return {"version": 1, "latents": _latents(codec, b"", count, d_z, data[14:])}
    assert data[4] == 2 and struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])
    flags, rest = data[5], list(data[6:-4])
    assert _varint(rest) == len(rest)
    out: dict[str, Any] = {"version": 2, "more": bool(flags & 16)}
    out["sender"] = _take(rest, 8).hex() if flags & 4 else None
    out["codebook"] = _take(rest, 4).hex() if flags & 8 else None
    if flags & 1:
        codec, parameters = rest.pop(0), _take(rest, rest.pop(0))
        count, d_z = _varint(rest), _varint(rest)
        lengths = [_varint(rest) for _ in range(rest.pop(0))]
        layers = [_take(rest, length) for length in lengths]
        if codec in (7, 8, 9):
            out["latents"] = _learned(codec, count, layers, books[out["codebook"]])
        else:
            out["latents"] = _latents(codec, parameters, count, d_z, *layers)
    if flags & 2:
        kind, content = rest[0], bytes(rest[1:])
        out["text"] = (zstandard.ZstdDecompressor().decompress(content) if kind else content).decode()
    return out


def _take(rest: list[int], size: int) -> bytes:
    taken = bytes(rest[:size])
    del rest[:size]
    assert len(taken) == size
    return taken


def _varint(rest: list[int]) -> int:
    value = shift = 0
    while True:
        byte = rest.pop(0)
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value


def _latents(codec: int, parameters: bytes, count: int, d_z: int, payload: bytes) -> list[list[float]]:
    if codec in FLOATS:
        kind = FLOATS[codec]
        if kind:
            flat = [value for (value,) in struct.iter_unpack(kind, payload)]
        else:
            flat = [struct.unpack("<f", b"\0\0" + payload[i : i + 2])[0] for i in range(0, len(payload), 2)]
    else:
        flat = _integers(BITS[codec], parameters, count, d_z, payload)
    assert len(flat) == count * d_z
    return [flat[row * d_z : (row + 1) * d_z] for row in range(count)]


def _integers(bits: int, parameters: bytes, count: int, d_z: int, payload: bytes) -> list[float]:
    group, scale_bits = struct.unpack("<HB", parameters) if parameters else (0, 16)
    group = min(group or d_z, d_z)
    groups = -(-d_z // group)
    size = scale_bits // 8
    codes = [int.from_bytes(payload[i * size : (i + 1) * size], "little") for i in range(count * groups)]
    halves = [code << (7 if scale_bits == 8 else 0) for code in codes]
    scales = [struct.unpack("<e", struct.pack("<H", half))[0] for half in halves]
    stream = "".join(f"{byte:08b}" for byte in payload[size * count * groups :])
    out = []
    for i in range(count * d_z):
        level = int(stream[i * bits : (i + 1) * bits], 2)
        level -= (level >> (bits - 1)) << bits
        out.append(level * scales[i // d_z * groups + i % d_z // group])
    return out


def _learned(codec: int, count: int, layers: list[bytes], book: dict[str, Any]) -> list[list[float]]:
    tables, words, parents, at, word = [], [], [], 0, 0
    dims, last = book.get("dims", list(range(len(book["sizes"])))), {}
    for column, (size, order) in enumerate(zip(book["sizes"], book["orders"], strict=True)):
        parents.append(last.get(dims[column]))
        rows = size + 1 if order else 1 if parents[-1] is None else len(words[parents[-1]])
        tables.append([book["counts"][at + r * size : at + (r + 1) * size] for r in range(rows)])
        cells = size if order else size * rows
        words.append(book["codewords"] if codec == 9 else book["codewords"][word : word + cells])
        at, word, last[dims[column]] = at + rows * size, word + cells, column
    codes: list[list[int]] = []
    assert 0 < len(layers) <= len(book["layers"])
    for payload, end in zip(layers, book["layers"], strict=False):
        least = 0 if codes else (count + 1) // 2
        assert len(payload) == least or (len(payload) > least and payload[-1])
        _ans(payload, count, tables[:end], parents, codes)
    out = []
    for m in range(count):
        y = [0.0] * len(book["back"])
        for column, of_column in enumerate(codes):
            chosen = words[column][of_column[m]]
            if codec == 9:
                rows = book["maps"][column * len(chosen) : (column + 1) * len(chosen)]
                chosen = [sum(a * row[k] for a, row in zip(chosen, rows, strict=True)) for k in range(len(y))]
            if codec != 8:
                y = [a + b for a, b in zip(y, chosen, strict=True)]
            else:
                y[dims[column]] = chosen[0]
        y = [value * scale for value, scale in zip(y, book.get("scale", [1.0] * len(y)), strict=True)]
        sums = [sum(y[k] * book["back"][k][d] for k in range(len(y))) for d in range(len(book["mean"]))]
        out.append([mean + s for mean, s in zip(book["mean"], sums, strict=True)])
    return out


def _ans(
    payload: bytes, count: int, tables: list[list[list[int]]], parents: list[int | None], columns: list[list[int]]
) -> None:
    number = int.from_bytes(payload, "little")
    words = []
    while number:
        words.append(number & 0xFFFFFFFF)
        number >>= 32
    state = words.pop() if words else 0
    if words:
        state = state << 32 | words.pop()
    for table, parent in zip(tables[len(columns) :], parents[len(columns) :], strict=False):
        codes: list[int] = []
        for m in range(count):
            cell = 0 if parent is None else columns[parent][m]
            row = table[cell if parent is not None or len(table) == 1 else codes[-1] + 1 if codes else 0]
            total, below, starts = sum(row), 0, []
            for i, frequency in enumerate(row):
                starts.append(int(below * (((1 << 24) - len(row)) / total)) + i)
                below += frequency
            starts.append(1 << 24)
            code = max(i for i in range(len(row)) if starts[i] <= state & MASK)
            state = (state >> 24) * (starts[code + 1] - starts[code]) + (state & MASK) - starts[code]
            if state < 1 << 32 and words:
                state = state << 32 | words.pop()
            codes.append(cell * len(row) + code)
        columns.append(codes)
    assert state == 0 and not words
