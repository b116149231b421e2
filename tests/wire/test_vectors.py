"""Messages that every implementation must read, and write, as they are: tests/data/wire_v1.json and wire_v2.json; and
those that it must refuse: wire_refused.json."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from latentwire.core.errors import WireError
from latentwire.wire.codebook import Codebook, recall, remember
from latentwire.wire.codecs import CODECS, LearnedCodec, parse_codec
from latentwire.wire.message import Wire
from tests import ROOT
from tests.wire import reference

DATA = ROOT / "tests" / "data"
V1: list[dict[str, Any]] = json.loads((DATA / "wire_v1.json").read_text())
V2: list[dict[str, Any]] = json.loads((DATA / "wire_v2.json").read_text())
REFUSED: list[dict[str, str]] = json.loads((DATA / "wire_refused.json").read_text())
BOOKS: dict[str, dict[str, Any]] = json.loads((DATA / "codebooks.json").read_text())


@pytest.fixture(autouse=True)
def codebooks() -> None:
    for name, book in BOOKS.items():
        arrays = {key: np.array(value) for key, value in book.items() if key != "kind"}
        assert remember(Codebook(book["kind"], arrays)).id.hex() == name


@pytest.mark.parametrize("vector", [*V1, *V2], ids=lambda v: v["name"])
def test_a_vector_is_read(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    wire, other = Wire.from_bytes(data), reference.read(data, BOOKS)
    assert wire.frame.version == other["version"] == (1 if vector in V1 else 2)
    for key in ("sender", "text", "more", "codebook"):
        got = {"sender": wire.frame.sender and wire.frame.sender.hex(), "text": wire.text, "more": wire.frame.more}
        got["codebook"] = wire.frame.codebook and wire.frame.codebook.hex()
        without = False if key == "more" else None
        assert got[key] == vector.get(key, without) == other.get(key, without)
    if vector["codec"] is None:
        assert wire.latents is None and "latents" not in other
    else:
        assert str(wire.codec) == vector["codec"]
        # The rotation of a learned codec adds up numbers, in any order.
        close = {"rtol": 0, "atol": 1e-6 if vector.get("codebook") else 0}
        np.testing.assert_allclose(wire.latents, np.float32(vector["latents"]), **close)
        np.testing.assert_allclose(np.float32(other["latents"]), np.float32(vector["latents"]), **close)


@pytest.mark.parametrize("vector", [v for v in V2 if v.get("writes", True)], ids=lambda v: v["name"])
def test_a_vector_is_written(vector: dict[str, Any]) -> None:
    sender = vector.get("sender") and bytes.fromhex(vector["sender"])
    more, codec = vector.get("more", False), parse_codec(vector.get("written") or vector["codec"] or "fp16")
    if isinstance(codec, LearnedCodec):
        codec = codec.with_book(recall(bytes.fromhex(vector["codebook"])))
    wire = Wire.of(vector.get("given"), codec, text=vector.get("text"), sender=sender, more=more)
    assert wire.to_bytes().hex() == vector["bytes"]


@pytest.mark.parametrize("vector", V1, ids=lambda v: v["name"])
def test_an_old_message_is_written_again_in_the_new_form(vector: dict[str, Any]) -> None:
    old = Wire.from_bytes(bytes.fromhex(vector["bytes"]))
    new = Wire.from_bytes(old.to_bytes())
    assert new.frame.version == 2 and np.array_equal(new.latents, old.latents)


@pytest.mark.parametrize("vector", REFUSED, ids=lambda v: v["name"])
def test_a_message_that_must_be_refused_is(vector: dict[str, str]) -> None:
    data = bytes.fromhex(vector["bytes"])
    if "learned layer" not in vector["name"]:
        with pytest.raises(WireError):
            Wire.from_bytes(data)
        return
    wire = Wire.from_bytes(data)  # what only the codebook tells is found when latents are asked for
    with pytest.raises(WireError):
        _ = wire.latents
    with pytest.raises(AssertionError):
        reference.read(data, BOOKS)


def test_every_codec_and_every_field_has_a_vector() -> None:
    assert {str(v["codec"]).split(":")[0] for v in V2} >= set(CODECS)
    for key in ("sender", "text", "more", "codebook"):
        assert any(v.get(key) for v in V2)
    flags = {bytes.fromhex(v["bytes"])[5] for v in V2}
    assert flags >= {1, 2, 5, 7, 17}
