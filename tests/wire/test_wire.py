from __future__ import annotations

import contextlib
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentwire.core.errors import WireError
from latentwire.wire.codecs import CODECS
from latentwire.wire.header import SIZE
from latentwire.wire.message import Wire


@pytest.mark.parametrize("codec", CODECS)
def test_round_trip_is_exact_on_the_codec_s_own_grid(codec: str) -> None:
    torch.manual_seed(0)
    once = Wire.from_bytes(Wire(torch.randn(5, 16) * 3, codec).to_bytes())
    assert once.codec == codec
    assert torch.equal(Wire.from_bytes(once.to_bytes()).latents, once.latents)


@pytest.mark.parametrize(("codec", "error"), [("fp32", 0.0), ("fp16", 2e-3), ("int8", 2e-2)])
def test_error_is_bounded_and_size_is_known(codec: str, error: float) -> None:
    torch.manual_seed(0)
    z = torch.randn(7, 32)
    data = Wire(z, codec).to_bytes()
    assert len(data) == SIZE + CODECS[codec].size(7, 32)
    assert (Wire.from_bytes(data).latents - z).abs().max() <= error


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused_on_both_sides(bad: float) -> None:
    z = torch.ones(2, 4)
    z[1, 2] = bad
    with pytest.raises(WireError, match="NaN or inf"):
        Wire(z).to_bytes()
    forged = CODECS["fp16"].encode(torch.ones(2, 4))[:-2] + b"\x00\x7e"
    from latentwire.wire import header

    with pytest.raises(WireError, match="NaN or inf"):
        Wire.from_bytes(header.pack(CODECS["fp16"].id, 2, 4, forged))


def test_mutated_messages_give_a_wire_or_a_wire_error() -> None:
    rng = random.Random(0)
    data = Wire(torch.ones(3, 8), "int8").to_bytes()
    for _ in range(3000):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        if rng.random() < 0.3:
            del broken[rng.randrange(len(broken)) :]
        with contextlib.suppress(WireError):
            assert torch.isfinite(Wire.from_bytes(bytes(broken)).latents).all()


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        Wire.from_bytes(data)


def test_the_header_needs_no_torch() -> None:
    code = "import sys, latentwire.wire.header; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
