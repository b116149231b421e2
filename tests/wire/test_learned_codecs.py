"""Learned codecs: codes, entropy coding, payload layers, codebooks."""

from __future__ import annotations

import numpy as np
import pytest

from latentwire.core.errors import CheckpointError, WireError
from latentwire.wire.codebook import Codebook, recall, remember
from latentwire.wire.codecs import parse_codec
from latentwire.wire.codecs.entropy import code_length, decode_columns, encode_columns
from latentwire.wire.codecs.learned import MOST_LATENTS
from latentwire.wire.message import Wire
from tests.wire.books import D_Z, LAYERS, small_book, small_codec

KINDS = ("rvq", "fsq")
Z = np.random.default_rng(1).standard_normal((9, D_Z)).astype(np.float32)


def random_codes(book: Codebook, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, size, count) for size in book.sizes], 1).astype(np.int32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 9, 300])
def test_codes_come_back_exactly(kind: str, count: int) -> None:
    book = small_book(kind)
    codes = random_codes(book, count)
    data = encode_columns(codes, book.counts)
    np.testing.assert_array_equal(decode_columns(data, count, book.counts), codes)


def test_the_coder_takes_what_the_frequencies_say() -> None:
    rng, count = np.random.default_rng(0), 4000
    table = np.array([[900, 50, 50], [20, 970, 10], [10, 10, 980], [300, 300, 400]], np.int32)
    codes, previous = [], 0
    for _ in range(count):
        codes.append(rng.choice(3, p=table[previous] / table[previous].sum()))
        previous = codes[-1] + 1
    column = np.array(codes, np.int32)[:, None]
    expected = code_length(column[:, 0], table, np.arange(count) == 0)
    assert 8 * len(encode_columns(column, [table])) == pytest.approx(expected, rel=0.01)
    assert expected < 0.7 * code_length(column[:, 0], table[3:], np.arange(count) == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_decodes_where_its_codebook_is_known(kind: str) -> None:
    codec = small_codec(kind, seed=3)
    data = Wire.of(Z, codec).to_bytes()
    unknown = Wire.from_bytes(data)
    with pytest.raises(WireError, match=f"needs codebook {codec.codebook.hex()}, which is not known here"):  # type: ignore[union-attr]
        _ = unknown.latents
    assert codec.book is not None
    remember(codec.book)
    wire = Wire.from_bytes(data)
    np.testing.assert_array_equal(wire.latents, codec.quantized(Z))
    assert recall(wire.frame.codebook or b"") is codec.book


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_layers_decodes_and_more_are_better(kind: str) -> None:
    codec = small_codec(kind)
    remember(codec.book)  # type: ignore[arg-type]
    # Latents that the codebook can tell: what it does not code is at the mean.
    grid = codec.unrotated(codec.vectors(random_codes(codec.book, 200)))  # type: ignore[arg-type]
    whole = Wire.of(grid, codec)
    errors = []
    for layers in range(1, LAYERS + 1):
        part = Wire.from_bytes(whole.prefix(layers).to_bytes())
        written = Wire.of(grid, codec.configured({"layers": layers}))
        assert part.to_bytes() == written.to_bytes()
        np.testing.assert_array_equal(part.latents, codec.quantized(grid, layers))
        errors.append(float(np.square(part.latents - grid).sum()))
    assert errors[0] > errors[1] > errors[2]
    if kind == "fsq":  # dimensions are independent, so its grid is kept
        np.testing.assert_allclose(whole.latents, grid, atol=1e-5)


def test_residual_codes_are_the_nearest_vectors() -> None:
    codec = small_codec("rvq")
    y = codec.rotated(Z)
    codes, rest = codec.codes(y), y
    for words, column in zip(codec.book.codewords, codes.T, strict=True):  # type: ignore[union-attr]
        distances = np.square(rest[:, None] - words).sum(-1)
        np.testing.assert_array_equal(column, distances.argmin(1))
        rest = rest - words[column]
    np.testing.assert_allclose(codec.vectors(codes), y - rest, atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda d: d[:-1], "more than its latents"),
        (lambda d: d + b"\0", "not in shortest form"),
        (lambda d: d + b"\7", "more than its latents"),
        (lambda d: d[:3], "cut off"),
    ],
)
def test_a_damaged_payload_is_refused(damage: object, why: str) -> None:
    book = small_book("fsq")
    data = encode_columns(random_codes(book, 40), book.counts, 20)
    with pytest.raises(WireError, match=why):
        decode_columns(damage(data), 40, book.counts, 20)  # type: ignore[operator]


def test_what_a_few_bytes_may_claim_is_bounded() -> None:
    codec = small_codec("fsq")
    with pytest.raises(WireError, match="9 bytes for 20 latents: cut off"):
        codec.decode([b"\1" * 9], 20, D_Z)
    many = np.zeros((MOST_LATENTS + 1, D_Z), np.float32)
    with pytest.raises(WireError, match="takes at most 4,096"):
        Wire.of(many, codec)
    with pytest.raises(WireError, match="takes at most 4,096"):
        codec.decode([b"\1" * 9000], MOST_LATENTS + 1, D_Z)


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(WireError, match="has no codebook of it"):
        Wire.of(Z, "rvq")
    with pytest.raises(WireError, match="the codebook is one of 'fsq'"):
        parse_codec("rvq").with_book(small_book("fsq"))  # type: ignore[attr-defined]
    with pytest.raises(WireError, match="layers is at most 3, not 4"):
        parse_codec("rvq:layers=4").with_book(small_book("rvq"))  # type: ignore[attr-defined]
    with pytest.raises(WireError, match="has no setting 'group'"):
        parse_codec("fsq:group=3")
    with pytest.raises(WireError, match="latents of width 5, but codebook"):
        Wire.of(np.zeros((2, 5), np.float32), small_codec("fsq"))
    assert str(parse_codec("rvq:layers=2")) == "rvq:layers=2"


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": np.array([9, 7, 5, 3, 1])},
        {"layers": np.array([2, 2, 5])},
        {"layers": np.array([2, 4])},
        {"orders": np.array([0, 1, 0, 1, 2])},
        {"counts": np.array([1, 2])},
        {"codewords": np.zeros((3, 1))},
        {"mean": np.zeros(3)},
        {"back": np.full((5, D_Z), np.inf)},
    ],
)
def test_a_codebook_that_does_not_fit_together_is_refused(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(CheckpointError, match="do not fit together"):
        Codebook("fsq", small_book("fsq").arrays | change)
    with pytest.raises(CheckpointError, match="is missing"):
        Codebook("fsq", {"mean": np.zeros(3)})


def test_the_id_is_that_of_the_content() -> None:
    assert small_book("fsq").id == small_book("fsq").id
    assert len({small_book(kind, seed).id for kind in KINDS for seed in (0, 1)}) == 4
