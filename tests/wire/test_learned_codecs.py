"""Learned codecs: codes, entropy coding, payload layers, codebooks."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from latentwire.core.errors import CheckpointError, WireError
from latentwire.wire.codebook import Codebook, recall, refined, remember
from latentwire.wire.codecs import aq, parse_codec
from latentwire.wire.codecs.aq import AdditiveCodec
from latentwire.wire.codecs.learned import MOST_LATENTS
from latentwire.wire.entropy import Column, decode_columns, encode_columns
from latentwire.wire.message import Wire
from latentwire.wire.samples import sample_codebook
from tests.wire.books import D_Z, LAYERS, small_book, small_codec

KINDS = ("rvq", "fsq", "aq")
Z = np.random.default_rng(1).standard_normal((9, D_Z)).astype(np.float32)


def random_codes(book: Codebook, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    codes = np.zeros((count, len(book.sizes)), np.int32)
    for number, (size, by) in enumerate(zip(book.sizes, book.refines, strict=True)):
        codes[:, number] = rng.integers(0, size, count) + (0 if by is None else size * codes[:, by])
    return codes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 9, 300])
def test_codes_come_back_exactly(kind: str, count: int) -> None:
    book = small_book(kind)
    codes = random_codes(book, count)
    data = encode_columns(codes, book.columns)
    nothing = np.empty((count, 0), np.int32)
    np.testing.assert_array_equal(decode_columns(data, nothing, book.columns), codes)
    assert any(column.refines is not None for column in book.columns) == (kind == "fsq")
    for first in range(1, len(book.columns)):  # in two layers, of which the second leans on the first
        data = encode_columns(codes[:, first:], book.columns[first:])
        np.testing.assert_array_equal(decode_columns(data, codes[:, :first], book.columns[first:]), codes)


def test_the_coder_takes_what_the_frequencies_say() -> None:
    rng, count = np.random.default_rng(0), 4000
    table = np.array([[900, 50, 50], [20, 970, 10], [10, 10, 980], [300, 300, 400]], np.int32)
    codes, previous = [], 0
    for _ in range(count):
        codes.append(rng.choice(3, p=table[previous] / table[previous].sum()))
        previous = codes[-1] + 1
    own, starts = np.array(codes, np.int32), np.arange(count) == 0
    expected = Column(table).bits(own, starts)
    assert 8 * len(encode_columns(own[:, None], [Column(table)])) == pytest.approx(expected, rel=0.01)
    assert expected < 0.7 * Column(table[3:]).bits(own, starts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_decodes_where_its_codebook_is_known(kind: str) -> None:
    codec = small_codec(kind, seed=3)
    data = Wire.of(Z, codec).to_bytes()
    wire = Wire.from_bytes(data)
    assert codec.book is not None
    with pytest.raises(WireError, match=f"needs codebook {codec.book.id.hex()}, which is not known here"):
        _ = wire.latents
    remember(codec.book)  # as it happens where a message was parsed before the checkpoint was loaded
    np.testing.assert_array_equal(wire.latents, codec.quantized(Z))
    assert recall(wire.frame.codebook or b"") is codec.book


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_layers_decodes_and_more_are_better(kind: str) -> None:
    codec = small_codec(kind)
    remember(codec.book)  # type: ignore[arg-type]
    # Latents that the codebook can tell: what it does not code is at the mean.
    book = codec.book
    assert book is not None
    grid = book.mean + codec.vectors(book, random_codes(book, 200)) @ book.back
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


def test_a_later_column_of_a_dimension_cuts_the_cells_of_the_one_before() -> None:
    codec = small_codec("fsq")
    book = codec.book
    assert book is not None
    assert (book.dims, book.cells) == ([2, 1, 0, 2, 2], [9, 7, 5, 27, 81])
    y = codec.rotated(Z)
    codes = codec.codes(book, y)
    finest = np.abs(y[:, 2:3] - book.codewords[4].T).argmin(1)
    np.testing.assert_array_equal(codes[:, [0, 3, 4]], np.stack([finest // 9, finest // 3, finest], 1))
    for column, dim in ((1, 1), (2, 0)):
        np.testing.assert_array_equal(codes[:, column], np.abs(y[:, [dim]] - book.codewords[column].T).argmin(1))
    for columns, words in (
        (3, book.codewords[0][finest // 9]),
        (4, book.codewords[3][finest // 3]),
        (5, book.codewords[4][finest]),
    ):
        vectors = codec.vectors(book, codes[:, :columns])
        np.testing.assert_array_equal(vectors[:, 2], words[:, 0])
        assert (vectors[:, 3:] == 0).all()  # no column is about them


def test_what_a_finer_column_says_is_coded_by_what_is_known() -> None:
    rng, count = np.random.default_rng(0), 3000
    table = np.array([[980, 10, 10], [10, 10, 980]], np.int32)
    known = rng.integers(0, 2, count)
    cells = known * 3 + np.array([rng.choice(3, p=table[cell] / 1000) for cell in known])
    columns = [Column(np.array([[1, 1]], np.int32)), Column(table, refines=0)]
    codes = np.stack([known, cells], 1).astype(np.int32)
    expected = sum(column.bits(own, np.arange(count) == 0) for column, own in zip(columns, codes.T, strict=True))
    assert 8 * len(encode_columns(codes, columns)) == pytest.approx(expected, rel=0.01)
    assert expected < 1.3 * count


def test_residual_codes_are_the_nearest_vectors() -> None:
    codec = small_codec("rvq")
    y, book = codec.rotated(Z), codec.book
    assert book is not None
    codes, rest = codec.codes(book, y), y
    for words, column in zip(book.codewords, codes.T, strict=True):
        distances = np.square(rest[:, None] - words).sum(-1)
        np.testing.assert_array_equal(column, distances.argmin(1))
        rest = rest - words[column]
    np.testing.assert_allclose(codec.vectors(book, codes), y - rest, atol=1e-5)


def test_additive_codes_are_those_of_the_sum_that_is_nearest() -> None:
    book = sample_codebook("aq", D_Z, 8, [12] * 3, seed=4)
    codec = AdditiveCodec("aq", 9).with_book(book)
    assert isinstance(codec, AdditiveCodec)
    every = np.stack(np.meshgrid(*[np.arange(12)] * 3), -1).reshape(-1, 3)
    sums = codec.vectors(book, every)
    np.testing.assert_allclose(
        sums, sum(words[own] @ into for words, own, into in zip(book.codewords, every.T, book.maps, strict=True))
    )
    y = sums[np.random.default_rng(0).integers(0, len(sums), 300)]  # 300 latents are coded in two parts
    codes = codec.codes(book, y)
    near = np.square(y - codec.vectors(book, codes)).sum(1) < 1e-6
    assert near.mean() > 0.75, "changing one column at a time ends in another sum now and then"
    np.testing.assert_array_equal(codes[near], [every[np.square(sums - one).sum(1).argmin()] for one in y[near]])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("latentwire.wire.codecs.aq.SWEEPS", 1)
        assert (
            np.square(y - codec.vectors(book, codec.codes(book, y))).sum()
            > np.square(y - codec.vectors(book, codes)).sum()
        )


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
    data = encode_columns(random_codes(book, 40), book.columns, 20)
    with pytest.raises(WireError, match=why):
        decode_columns(damage(data), np.empty((40, 0), np.int32), book.columns, 20)  # type: ignore[operator]


def test_what_a_few_bytes_may_claim_is_bounded() -> None:
    codec = small_codec("fsq")
    with pytest.raises(WireError, match="20 latents in 9 bytes, which cannot hold so many"):
        codec.decode([b"\1" * 9], 20, D_Z)
    many = np.zeros((MOST_LATENTS + 1, D_Z), np.float32)
    with pytest.raises(WireError, match="takes at most 1,024"):
        Wire.of(many, codec)
    with pytest.raises(WireError, match="takes at most 1,024"):
        codec.decode([b"\1" * 9000], MOST_LATENTS + 1, D_Z)


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(WireError, match="has no codebook of it"):
        Wire.of(Z, "rvq")
    with pytest.raises(WireError, match=r"codebook .* is one of 'fsq'"):
        parse_codec("rvq").with_book(small_book("fsq"))  # type: ignore[attr-defined]
    with pytest.raises(WireError, match="layers is at most 3, not 4"):
        parse_codec("rvq:layers=4").with_book(small_book("rvq"))  # type: ignore[attr-defined]
    with pytest.raises(WireError, match="has no setting 'group'"):
        parse_codec("fsq:group=3")
    with pytest.raises(WireError, match="latents of width 5, but codebook"):
        Wire.of(np.zeros((2, 5), np.float32), small_codec("fsq"))
    assert str(parse_codec("rvq:layers=2")) == "rvq:layers=2"


def parted(kind: str, **change: object) -> dict[str, np.ndarray]:
    """A codebook's arrays with some of them changed, and as many codewords and counts as that takes."""
    arrays = small_book(kind).arrays | {name: np.array(value) for name, value in change.items()}
    sizes, orders = arrays["sizes"].tolist(), arrays["orders"].tolist()
    by = refined(arrays.get("dims", np.arange(len(sizes))).tolist())
    cells: list[int] = []
    for size, parent in zip(sizes, by, strict=True):
        cells.append(size * (1 if parent is None else cells[parent]))
    rows = [
        size + 1 if order else 1 if parent is None else cells[parent]
        for size, order, parent in zip(sizes, orders, by, strict=True)
    ]
    words = {
        "codewords": np.zeros((sizes[0], 3) if kind == "aq" else (sum(cells), 5 if kind == "rvq" else 1)),
        "counts": np.ones(np.dot(sizes, rows), int),
    }
    return arrays | {name: array for name, array in words.items() if name not in change}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("fsq", {"sizes": [9, 7, 5, 3, 1]}),
        ("fsq", {"layers": [2, 2, 5]}),
        ("fsq", {"layers": [2, 4]}),
        ("fsq", {"orders": [0, 2, 0, 0, 0]}),
        ("fsq", {"orders": [0, 0, 0, 1, 0]}),  # of one that refines another
        ("fsq", {"counts": [1, 2]}),
        ("fsq", {"counts": np.ones(179)}),
        ("fsq", {"counts": np.where(np.arange(178) == 30, 0, 1)}),
        ("fsq", {"counts": np.where(np.arange(178) == 177, -1, 1)}),
        ("fsq", {"codewords": np.zeros((3, 1))}),
        ("fsq", {"codewords": np.zeros((129, 5))}),
        ("fsq", {"codewords": np.full((129, 1), np.nan)}),
        ("fsq", {"mean": np.zeros(3)}),
        ("fsq", {"mean": np.full(D_Z, 1e30)}),
        ("fsq", {"back": np.full((5, D_Z), np.inf)}),
        ("fsq", {"into": np.zeros((5, D_Z))}),
        ("fsq", {"scale": np.ones(4), "back": np.ones((5, D_Z))}),
        ("fsq", {"scale": np.full(5, np.inf), "back": np.ones((5, D_Z))}),
        ("fsq", {"scale": np.ones(5), "back": np.full((5, D_Z), 300)}),
        ("fsq", {"scale": np.ones(5), "back": np.full((5, D_Z), np.nan)}),
        ("fsq", {"dims": [2, 1, 5, 2, 2]}),
        ("fsq", {"dims": [2, 1, -1, 2, 2]}),
        ("fsq", {"dims": [2.5, 1, 0, 2.5, 2.5]}),
        ("fsq", {"sizes": [4096, 2, 2, 2, 2]}),  # 8,192 cells
        ("fsq", {"sizes": [4096, 2, 2, 2, 2], "codewords": np.zeros((12_294, 1)), "counts": np.ones(20_490)}),  # cut
        ("fsq", {"sizes": [2, 2, 2, 257, 2]}),  # of one that refines another
        ("rvq", {"sizes": [300, 2, 2, 2, 2], "orders": [1, 0, 0, 0, 0]}),
        ("rvq", {"dims": [0, 1, 2, 3, 4]}),
        ("rvq", {"maps": np.ones((5, 5))}),
        ("aq", {"sizes": [40, 40, 40, 40, 41]}),  # they share their codewords
        ("aq", {"codewords": np.zeros((41, 3))}),
        ("aq", {"codewords": np.zeros((200, 3))}),
        ("aq", {"maps": np.zeros((15, 4))}),
        ("aq", {"maps": np.zeros((14, 5))}),
        ("aq", {"maps": np.full((15, 5), np.inf)}),
        ("aq", {"dims": [0, 1, 2, 3, 4]}),
    ],
)
def test_a_codebook_that_does_not_fit_together_is_refused(kind: str, change: dict[str, object]) -> None:
    assert Codebook(kind, parted(kind))
    with pytest.raises(CheckpointError, match="do not fit together"):
        Codebook(kind, parted(kind, **change))


@pytest.mark.parametrize("size", [262_145, 1 << 20, (1 << 20) + 1])
def test_a_vocabulary_may_be_larger_than_those_that_there_are(size: int) -> None:
    """Gemma 3 has 262,144 tokens, and with one that was added 262,145."""
    arrays = parted("aq", sizes=[size] * 5)
    if size > 1 << 20:
        with pytest.raises(CheckpointError, match="do not fit together"):
            Codebook("aq", arrays)
        return
    codec = AdditiveCodec("aq", 9).with_book(remember(Codebook("aq", arrays)))
    codes = np.array([[0, 1, 2, size - 2, size - 1]], np.int32)
    data = encode_columns(codes, codec.book.columns)  # type: ignore[union-attr]
    np.testing.assert_array_equal(decode_columns(data, codes[:, :0], codec.book.columns), codes)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kind", "change", "why"),
    [
        ("rvq", {"layers": range(1, 257)}, "256 payload layers, at most 255"),
        ("fsq", {"sizes": np.full(65_536, 2)}, "65,536 columns, at most 65,535"),
        (
            "fsq",
            {"into": np.zeros((1, 65_536)), "back": np.zeros((65_536, 1))},
            "65,536 dimensions of y, at most 65,535",
        ),
        ("fsq", {"mean": np.zeros(65_536)}, "65,536 dimensions of a latent, at most 65,535"),
        ("aq", {"codewords": np.zeros((2, 65_536))}, "65,536 numbers of a codeword, at most 65,535"),
    ],
)
def test_a_codebook_that_would_make_messages_cost_too_much_is_refused(
    kind: str, change: dict[str, object], why: str
) -> None:
    with pytest.raises(CheckpointError, match=f"codebook of '{kind}': {why}"):
        Codebook(kind, small_book(kind).arrays | {name: np.array(value) for name, value in change.items()})


@pytest.mark.parametrize(
    ("columns", "width", "k"),
    [(1, 6000, 1), (300, 1, 1000)],  # long codewords for narrow latents; many columns for wide ones
)
def test_a_writer_takes_memory_in_proportion_to_codebook_and_latents(columns: int, width: int, k: int) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "mean": np.zeros(2),
        "into": np.ones((2, k)),
        "back": np.ones((k, 2)),
        "layers": [columns],
        "sizes": np.full(columns, 3),
        "orders": np.zeros(columns),
        "codewords": rng.standard_normal((3, width)),
        "maps": rng.standard_normal((columns * width, k)),
        "counts": np.ones(3 * columns),
    }
    book = Codebook("aq", {name: np.array(array) for name, array in arrays.items()})
    y, held = rng.standard_normal((64, k)).astype(np.float32), sum(array.nbytes for array in book.arrays.values())
    held += y.nbytes + 4 * 64 * width
    tracemalloc.start()
    codes = AdditiveCodec("aq", 9, book).codes(book, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * held
    squares = [np.square(words @ into).sum(1) for words, into in zip(book.codewords, book.maps, strict=True)]
    np.testing.assert_allclose(book.lengths, squares, rtol=1e-4)
    assert codes.shape == (64, columns) and codes.min() >= 0


def test_a_codebook_of_another_kind_or_without_an_array_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        Codebook("fsq", {"mean": np.zeros(3)})
    for kind in ("rvq", "aq", "zip"):
        with pytest.raises(CheckpointError, match="do not fit together"):
            Codebook(kind, small_book("fsq").arrays)
    with pytest.raises(CheckpointError, match="do not fit together"):
        Codebook("fsq", small_book("fsq").arrays | {"dims": np.array([0, 1, 2, 3])})


def test_without_into_it_is_the_inverse_of_back() -> None:
    arrays = small_book("fsq").arrays
    with pytest.raises(CheckpointError, match="do not fit together"):  # fewer dimensions than latents have
        Codebook("fsq", {name: array for name, array in arrays.items() if name != "into"})
    rng = np.random.default_rng(0)
    whole = arrays | {"back": rng.integers(-127, 128, (D_Z, D_Z)), "scale": rng.uniform(0.01, 0.02, D_Z)}
    del whole["into"]
    book = Codebook("fsq", whole)
    assert book.arrays["back"].dtype == np.int8 and book.id != small_book("fsq").id
    np.testing.assert_allclose(book.back, whole["back"] * book.arrays["scale"].astype(np.float32)[:, None])
    np.testing.assert_allclose(book.back @ book.into, np.eye(D_Z), atol=1e-4)
    with pytest.raises(CheckpointError, match="back has no inverse"):
        _ = Codebook("fsq", whole | {"back": np.ones((D_Z, D_Z))}).into
    rows = rng.integers(-63, 64, (D_Z, D_Z))
    rows[3] = rows[1] + rows[2]  # which an inversion in floating point lets pass
    with pytest.raises(CheckpointError, match="back has no inverse"):
        _ = Codebook("fsq", whole | {"back": rows, "scale": np.full(D_Z, 0.01)}).into


@pytest.mark.parametrize("kind", ["rvq", "fsq", "aq"])
def test_latents_have_the_same_codes_however_many_there_are(kind: str) -> None:
    codec = small_codec(kind)
    z = np.random.default_rng(0).standard_normal((aq.TOGETHER + 1, D_Z)).astype(np.float32)
    assert codec.book is not None
    y = codec.rotated(z)
    parts = [codec.codes(codec.book, part) for part in (y[:100], y[100:])]
    assert np.array_equal(codec.codes(codec.book, y), np.concatenate(parts))


def test_what_is_far_away_is_told_as_the_end_that_it_lies_beyond() -> None:
    codec = small_codec("fsq")
    near, far = (codec.book.mean + by * codec.book.back.sum(0)[None] for by in (1e3, 1e8))  # type: ignore[union-attr]
    np.testing.assert_array_equal(codec.quantized(far), codec.quantized(near))
    with pytest.raises(WireError, match="latents are too large"):
        codec.encode(np.full((1, D_Z), 3e38, np.float32))


def test_the_id_is_that_of_the_content() -> None:
    assert small_book("fsq").id == small_book("fsq").id
    assert len({small_book(kind, seed).id for kind in KINDS for seed in (0, 1)}) == 2 * len(KINDS)
    book = small_book("fsq")
    assert not book.same_as(Codebook("fsq", parted("fsq", dims=[0, 1, 2, 3, 4])))
    without = parted("fsq", dims=[0, 1, 2, 3, 4])
    other, same = Codebook("fsq", without), Codebook("fsq", {k: v for k, v in without.items() if k != "dims"})
    assert other.id != same.id and not other.same_as(same) and not same.same_as(other)


def test_two_codebooks_cannot_share_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    first, again, other = small_book("fsq", 8), small_book("fsq", 8), small_book("fsq", 9)
    assert remember(first) is remember(again) is first
    monkeypatch.setattr(Codebook, "id", first.id)
    with pytest.raises(CheckpointError, match="is that of another one"):
        remember(other)


def test_codecs_are_equal_where_they_write_the_same() -> None:
    assert parse_codec("rvq:layers=1") == parse_codec("rvq:layers=1") != parse_codec("rvq:layers=2")
    assert small_codec("rvq") != parse_codec("rvq")
