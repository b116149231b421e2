"""Unsigned integers of a few bits, packed one behind the other, most significant bit first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latentwire.core.errors import WireError

Integers = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` integers of `bits` bits take."""
    return -(-count * bits // 8)


def pack_bits(values: Integers, bits: int) -> bytes:
    """Pack integers (n,) below 2**bits, with 1 to 16 bits; the last byte is filled up with zeros."""
    if bits == 8:
        return values.astype(np.uint8).tobytes()
    whole = values.astype(np.uint8 if bits < 8 else ">u2")
    planes = np.unpackbits(whole.view(np.uint8).reshape(len(values), -1), axis=1)
    return np.packbits(planes[:, -bits:]).tobytes()


def unpack_bits(data: bytes, bits: int, count: int) -> Integers:
    """The integers (count,) back from exactly `packed_size` bytes; WireError where the filling is not zero."""
    if bits == 8:
        return np.frombuffer(data, np.uint8, count)
    planes = np.unpackbits(np.frombuffer(data, np.uint8))
    if planes[count * bits :].any():
        raise WireError("message whose payload does not end in zero bits")
    whole = np.zeros((count, 8 if bits < 8 else 16), np.uint8)
    whole[:, -bits:] = planes[: count * bits].reshape(count, bits)
    packed = np.packbits(whole)
    return packed if bits < 8 else packed.view(">u2").astype(np.uint16)
