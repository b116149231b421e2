from __future__ import annotations

import contextlib
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from latentwire.cli.fuzz import fuzz
from latentwire.core.errors import WireError
from latentwire.wire import codecs
from latentwire.wire.codecs import CODECS
from latentwire.wire.codecs.learned import MOST_LATENTS
from latentwire.wire.frame import Frame, LatentSection
from latentwire.wire.message import Wire, read_texts
from latentwire.wire.samples import with_sample_book
from latentwire.wire.text import MOST_EXPANSION, pack_text
from tests.wire.books import D_Z, LAYERS, PLAIN, small_codec

Z = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
SENDER, OTHER = bytes(range(8)), bytes(8)


@pytest.mark.parametrize("codec", PLAIN)
def test_sender_and_receiver_see_the_same(codec: str) -> None:
    sent = Wire.of(Z, codec, text="Talden", sender=SENDER, more=True)
    got = Wire.from_bytes(sent.to_bytes())
    assert got == sent and got.codec == CODECS[codec]
    assert np.array_equal(got.latents, sent.latents) and got.text == "Talden" and got.frame.more


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_refused_on_both_sides(bad: float) -> None:
    z = Z.copy()
    z[1, 2] = bad
    with pytest.raises(WireError, match="NaN or inf"):
        Wire.of(z)
    for name in ("fp32", "fp16", "bf16"):
        forged = Wire.of(Z, name).frame
        assert forged.latents is not None
        # The exponent's bits are those of NaN and inf; which of the two decides the fraction.
        payload = forged.latents.layers[0][:-1] + b"\x7f"
        payload = payload[:-2] + b"\xff" + payload[-1:]
        data = replace(forged, latents=replace(forged.latents, layers=(payload,))).pack()
        with pytest.raises(WireError, match="NaN or inf"):
            Wire.from_bytes(data)


@pytest.mark.parametrize("spec", ["int8", "int4:group=4,scale_bits=8"])
def test_a_scale_that_is_not_finite_is_refused(spec: str) -> None:
    frame = Wire.of(Z, spec).frame
    assert frame.latents is not None
    size = 2 if spec == "int8" else 1
    payload = b"\x00\x7c"[:size] if size == 2 else b"\xf8"
    forged = replace(frame.latents, layers=(payload + frame.latents.layers[0][size:],))
    with pytest.raises(WireError, match="NaN or inf"):
        Wire.from_bytes(replace(frame, latents=forged).pack())


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (2, 2, 2), (1, 65_536), (65_536, 1)])
def test_latents_that_fit_no_frame_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(WireError, match=r"latents of (shape|width)"):
        Wire.of(np.zeros(shape, np.float32))


def test_an_unknown_codec_is_named() -> None:
    data = Frame(LatentSection(200, b"", 1, 1, (b"ab",))).pack()
    with pytest.raises(WireError, match=r"unknown codec 200 .this reader knows fp32, fp16"):
        Wire.from_bytes(data)


def test_a_reader_of_another_sender_or_width_is_told() -> None:
    wire = Wire.of(Z, sender=SENDER)
    assert wire.misfit(SENDER, 8) is None and wire.misfit(None, 8) is None
    assert wire.misfit(OTHER, 8) == f"the message comes from sender {SENDER.hex()}; the reader expects {OTHER.hex()}"
    assert wire.misfit(SENDER, 9) == "the message has latents of width 8; the reader expects 9"
    assert Wire.of(Z).misfit(OTHER, 8) is None
    assert Wire.of(text="Talden").misfit(SENDER, 8) == "the message holds no latents"


# ---- text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a", "Ünïcode 灯 \0", "The boat of Orlin. " * 40, "x" * 100_000])
def test_a_text_comes_back_and_is_small(text: str) -> None:
    wire = Wire.of(text=text)
    assert Wire.from_bytes(wire.to_bytes()).text == text
    assert wire.latents is None and wire.codec is None
    raw = len(text.encode())
    assert len(pack_text(text)) <= raw + 1
    if 100 < raw < 10_000:
        assert len(pack_text(text)) < raw / 4


def test_a_text_that_shrinks_too_much_is_sent_as_it_is() -> None:
    packed = zstandard.compress(b"x" * 100_000)
    assert MOST_EXPANSION * len(packed) < 100_000
    assert pack_text("x" * 100_000) == b"\0" + b"x" * 100_000
    with pytest.raises(WireError, match="100,000 bytes in"):
        Wire.from_bytes(Frame(text=b"\1" + packed).pack())


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (b"", "empty text"),
        (b"\0", "empty text"),
        (b"\2abc", "unknown form 2"),
        (b"\0\xff\xfe", "not UTF-8"),
        (b"\1abc", "damaged text"),
        (b"\1" + zstandard.compress(b"Talden " * 9)[:-3], "damaged text"),
        (b"\1" + zstandard.compress(b"Talden " * 9) + b"\0", "damaged text"),
        (b"\1" + zstandard.ZstdCompressor(write_content_size=False).compress(b"Talden"), "refused"),
    ],
)
def test_a_bad_text_is_refused(packed: bytes, message: str) -> None:
    with pytest.raises(WireError, match=message):
        Wire.from_bytes(Frame(text=packed).pack())


@pytest.mark.parametrize("text", ["", "\ud800"])
def test_a_text_that_cannot_be_sent_is_refused(text: str) -> None:
    with pytest.raises(WireError, match="the text is"):
        Wire.of(text=text)


# ---- several messages ---------------------------------------------------------------------------------------------


def test_parts_of_one_text_are_read_together() -> None:
    one, two, alone = Wire.of(text="a", more=True), Wire.of(text="b"), Wire.of(Z)
    data = b"".join(wire.to_bytes() for wire in (one, two, alone))
    assert list(read_texts(BytesIO(data))) == [(one, two), (alone,)]
    assert list(read_texts(BytesIO(b""))) == []
    with pytest.raises(WireError, match="ends inside a text: after part 1"):
        list(read_texts(BytesIO(data + one.to_bytes())))


# ---- layers and codebooks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rvq", "fsq", "aq"])
def test_what_is_left_of_a_message_cut_to_its_first_layers(kind: str) -> None:
    codec = small_codec(kind)
    wire = Wire.of(np.ones((3, D_Z)), codec, text="Talden", sender=SENDER)
    coarse = Wire.from_bytes(wire.prefix(1).to_bytes())
    assert coarse.text == "Talden" and coarse.frame.sender == SENDER and coarse.frame.codebook == codec.codebook
    section = wire.frame.latents
    assert section is not None and wire.prefix(LAYERS) == wire
    assert len(coarse.to_bytes()) == len(wire.to_bytes()) - sum(map(len, section.layers[1:])) - 2
    for layers in (0, LAYERS + 1):
        with pytest.raises(WireError, match="that has 3"):
            wire.prefix(layers)


def test_latents_of_an_unknown_codebook_are_refused_but_not_the_text_beside_them() -> None:
    codec = small_codec("rvq", seed=7)
    wire = Wire.from_bytes(Wire.of(np.ones((3, D_Z)), codec, text="Talden").to_bytes())
    assert wire.text == "Talden"
    with pytest.raises(WireError, match="which is not known here"):
        _ = wire.latents


# ---- safety -------------------------------------------------------------------------------------------------------


def test_damaged_and_forged_messages_give_a_wire_or_a_wire_error() -> None:
    result = fuzz(messages=4000, seed=1)
    assert result["valid"] + sum(result["refused"].values()) == 4000
    # Most get past the checksum, and enough of those are messages.
    assert result["valid"] > 200 and len(result["refused"]) > 15
    assert sum(n for reason, n in result["refused"].items() if "checksum" in reason) < 1200


@given(
    st.integers(0, 9),
    st.sampled_from([b"", b"\0\0\x10", b"\2\0\x08", b"\xff\xff\x10"]) | st.binary(max_size=4),
    st.integers(1, 6),
    st.integers(1, 6),
    st.lists(st.binary(max_size=150), min_size=1, max_size=2).map(tuple),
    st.none() | st.binary(min_size=4, max_size=4),
    st.none() | st.binary(max_size=20),
    st.integers(0, 2),
)
def test_any_fields_give_a_finite_wire_or_a_wire_error(
    codec: int,
    parameters: bytes,
    count: int,
    d_z: int,
    layers: tuple[bytes, ...],
    codebook: bytes | None,
    text: bytes | None,
    fitting: int,
) -> None:
    if fitting and codec in codecs.BY_ID:  # a payload of the right length, of whatever bytes
        with contextlib.suppress(WireError):
            own = codecs.BY_ID[codec].from_frame(parameters, None)
            size = len(own.encode(np.zeros((count, d_z), np.float32))[0])
            layers, codebook = ((layers[0] * size + bytes(size))[:size],), None
    data = Frame(LatentSection(codec, parameters, count, d_z, layers), text, codebook=codebook).pack()
    with contextlib.suppress(WireError):
        wire = Wire.from_bytes(data)
        assert wire.latents is not None and np.isfinite(wire.latents).all() and wire.latents.shape == (count, d_z)
        assert wire.to_bytes() == data


@pytest.mark.parametrize(
    "frame",
    [
        Frame(LatentSection(6, b"\xff\xff\x10", 65_535, 1, (bytes(2 * 65_535 + 32_768),))),
        Frame(LatentSection(6, b"\x01\x00\x08", 65_535, 4, (bytes(6 * 65_535),))),
        Frame(LatentSection(6, b"\xff\xff\x10", 65_535, 65_535, (bytes(1000),))),
        Frame(LatentSection(1, b"", 65_535, 65_535, (bytes(1000),))),
        Frame(LatentSection(6, b"\xff\xff\x08", 1, 65_535, (bytes(32_769),))),
        Frame(text=b"\1" + b"\x28\xb5\x2f\xfd\xa0\xff\xff\xff\x7f" + bytes(1000)),
    ],
)
def test_a_parse_takes_memory_in_proportion_to_the_message(frame: Frame) -> None:
    data = frame.pack()
    tracemalloc.start()
    try:
        Wire.from_bytes(data)
    except WireError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64 * len(data) + 100_000


def test_latents_of_a_learned_codec_are_bounded_before_they_are_decoded() -> None:
    codec = with_sample_book(CODECS["fsq"], 256)
    section = Wire.of(np.zeros((MOST_LATENTS, 256)), codec).frame.latents
    assert section is not None
    for count in (MOST_LATENTS, MOST_LATENTS + 1, 65_535):
        frame = Frame(replace(section, count=count), codebook=codec.codebook)
        tracemalloc.start()
        try:
            with contextlib.nullcontext() if count == MOST_LATENTS else pytest.raises(WireError, match="at most 1,024"):
                wire = Wire.from_bytes(frame.pack())
            parsed = tracemalloc.get_traced_memory()[1]
            if count == MOST_LATENTS:
                _ = wire.latents
            decoded = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert parsed < 100_000 and decoded < (8 * 4 * 256 * MOST_LATENTS if count == MOST_LATENTS else 100_000)


def test_messages_need_no_torch() -> None:
    code = (
        "import sys, latentwire; from latentwire import Wire; from latentwire.cli import main; "
        "Wire.from_bytes(Wire.of([[1.0]], 'int4', text='a').to_bytes()); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
