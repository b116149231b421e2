from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentwire.core.errors import WireError
from latentwire.wire.bits import pack_bits, packed_size, unpack_bits
from latentwire.wire.codecs import CODECS, Array, parse_codec
from tests.wire.books import PLAIN

SPECS = [
    *PLAIN,
    *(
        f"int{bits}:group={group},scale_bits={scale}"
        for bits in (8, 6, 4)
        for group in (0, 1, 5, 64)
        for scale in (8, 16)
    ),
]


def normal(count: int, d_z: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((count, d_z)).astype(np.float32)


def through(spec: str, z: Array) -> Array:
    codec = parse_codec(spec)
    return codec.decode(codec.encode(z), *z.shape)


@pytest.mark.parametrize("spec", SPECS)
@given(st.integers(0, 10**9), st.integers(1, 4), st.integers(1, 20), st.floats(-12, 12))
def test_numbers_of_a_codec_s_own_grid_come_back_exactly(
    spec: str, seed: int, count: int, d_z: int, magnitude: float
) -> None:
    z = normal(count, d_z, seed) * np.float32(10**magnitude)
    z[:, ::3] = 0 if seed % 2 else z[:, ::3]
    once = through(spec, z)
    assert once.dtype == np.float32 and np.isfinite(once).all()
    assert np.array_equal(through(spec, once), once)


@pytest.mark.parametrize(
    ("spec", "error", "bits"),
    [
        ("fp32", 0.0, 32),
        ("fp16", 3e-4, 16),
        ("bf16", 2.5e-3, 16),
        ("int8", 1e-2, 8.1),
        ("int6", 2.4e-2, 6.3),
        ("int4", 1e-1, 4.3),
        ("int4:group=256", 1.4e-1, 4.1),
    ],
)
def test_error_and_size_on_normal_latents(spec: str, error: float, bits: float) -> None:
    z = normal(64, 512)
    assert np.sqrt(np.square(through(spec, z) - z).mean()) <= error
    (payload,) = parse_codec(spec).encode(z)
    assert 8 * len(payload) / z.size <= bits


def test_an_8_bit_scale_of_a_smaller_group_beats_a_16_bit_one_at_the_same_size() -> None:
    z = normal(64, 512)
    pair = ("int4:group=32,scale_bits=8", "int4:group=64,scale_bits=16")
    sizes = [len(parse_codec(spec).encode(z)[0]) for spec in pair]
    errors = [np.square(through(spec, z) - z).mean() for spec in pair]
    assert sizes[0] == sizes[1] and errors[0] < 0.9 * errors[1]


def test_what_is_too_large_becomes_the_largest_number() -> None:
    z = np.array([[3.4e38, -3.4e38]], np.float32)
    assert through("fp16", z).tolist() == [[65504.0, -65504.0]]
    assert np.isfinite(through("bf16", z)).all() and np.isfinite(through("int4", z)).all()


@pytest.mark.parametrize("spec", SPECS)
def test_a_payload_of_another_length_is_refused(spec: str) -> None:
    codec = parse_codec(spec)
    (payload,) = codec.encode(normal(3, 7))
    for wrong in ([payload[:-1]], [payload + b"\0"], [payload, b""], [b""]):
        with pytest.raises(WireError, match="payload"):
            codec.decode(wrong, 3, 7)
    with pytest.raises(WireError, match="payload"):
        codec.decode([payload], 65_535, 65_535)


@pytest.mark.parametrize("spec", SPECS)
def test_a_codec_is_rebuilt_from_its_parameters_and_from_its_name(spec: str) -> None:
    codec = parse_codec(spec)
    assert CODECS[codec.name].from_frame(codec.parameters, None) == codec == parse_codec(str(codec))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("int5", "codec 'int5' is unknown .there are fp32, fp16, bf16, int8, int6, int4"),
        ("int4:group", "'group' is not setting=number"),
        ("int4:group=-1", "is not setting=number"),
        ("int4:group=65536", "group is 0 .a whole latent. to 65,535, not 65536"),
        ("int4:scale_bits=12", "scale_bits is 8 or 16, not 12"),
        ("int4:bits=2", "has no setting 'bits'"),
        ("fp16:group=4", "has no setting 'group'"),
        ("int4:group=3,group=5", "group is given twice"),
    ],
)
def test_a_wrong_codec_is_named(spec: str, message: str) -> None:
    with pytest.raises(WireError, match=message):
        parse_codec(spec)


@pytest.mark.parametrize(
    ("name", "parameters", "codebook"),
    [("fp16", b"\1", None), ("int4", b"\1\0", None), ("int4", b"\1\0\4", None), ("int8", b"", bytes(4))],
)
def test_foreign_parameters_and_codebooks_are_refused(name: str, parameters: bytes, codebook: bytes | None) -> None:
    with pytest.raises(WireError):
        CODECS[name].from_frame(parameters, codebook)


@given(st.integers(1, 16), st.lists(st.integers(0, 65_535), min_size=1, max_size=50))
def test_bits_are_packed_tightly_and_come_back(bits: int, values: list[int]) -> None:
    numbers = np.array(values, np.uint16) & (2**bits - 1)
    data = pack_bits(numbers, bits)
    assert len(data) == packed_size(len(values), bits) == -(-len(values) * bits // 8)
    assert unpack_bits(data, bits, len(values)).tolist() == numbers.tolist()


def test_filling_bits_must_be_zero() -> None:
    assert pack_bits(np.array([1], np.uint8), 6) == b"\x04"
    with pytest.raises(WireError, match="zero bits"):
        unpack_bits(b"\x05", 6, 1)
