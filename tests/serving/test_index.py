"""A corpus as a data set of messages: built, stopped, changed, searched and answered from."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from latentwire import Receiver, Sender
from latentwire.checkpoint.index import load_config_of
from latentwire.cli.main import main as latentwire
from latentwire.core.errors import DataError, ModelError
from latentwire.core.hashing import stable_hash
from latentwire.data.documents import Document, read_documents
from latentwire.model.pretrained import save_checkpoint
from latentwire.model.system import LatentWire
from latentwire.serving import index_files
from latentwire.serving.build_index import Shard, build_index, recipe
from latentwire.serving.index import Index, answer_from
from latentwire.wire.codecs import parse_codec
from latentwire.wire.message import Wire
from latentwire.wire.samples import sample_codebook
from scripts.measure_index import app as measure_index
from tests.commands import fails
from tests.systems import saved_run, small_config, small_passages, small_system

TEXTS = [p.context for p in small_passages(6)]
CORPUS = [Document(f"d{n}", text) for n, text in enumerate(TEXTS)]
MADE_WITH = {"sender": "00", "codec": "fp16"}


@pytest.fixture(scope="module")
def system() -> LatentWire:
    return small_system(small_config())


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_files, "SHARD", 4)
    monkeypatch.setattr(index_files, "ROW_GROUP", 3)


def _unloaded() -> Sender:
    raise AssertionError("the sender was loaded")


def state(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(out.rglob("*")) if path.is_file()}


def test_documents_are_found_by_their_words_and_answered_from_their_messages(
    system: LatentWire, tmp_path: Path
) -> None:
    info = build_index(CORPUS, tmp_path / "x", lambda: system.sender, MADE_WITH)
    assert (info["documents"], info["encoded"]) == (6, 6)
    assert sorted(path.name for path in (tmp_path / "x" / "wires").iterdir()) == ["00000.parquet", "00001.parquet"]
    index = Index(tmp_path / "x")
    sizes = []
    for number, document in enumerate(CORPUS):
        name, message = index.document(number)
        (wire,) = message
        alone = system.sender.encode(document.text, "fp16")
        assert (name, wire.text) == (document.id, None)
        np.testing.assert_allclose(wire.latents, alone.latents, atol=2e-3)
        sizes.append(len(wire.to_bytes()))
    assert info["wire_bytes"] == sum(sizes)
    best, *others = index.search("Where does Edda live, in Brannock?", 4)
    assert best.id == "d2" and best.message == index.document(2)[1]
    assert all(best.score > other.score for other in others)
    assert [hit.id for hit in index.search("Edda", 6)] == ["d2"]  # no more than share a word
    assert index.search("Zanzibar") == [] == index.search("") and len(index.search("river", 50)) == 6
    receiver = system.receivers["a"]
    reply, hits = answer_from(index, receiver, "Where do Edda and Mira live?", 2, 6)
    assert {hit.id for hit in hits} == {"d0", "d2"}
    assert reply == receiver.answer([*hits[0].message, *hits[1].message], "Where do Edda and Mira live?", 6)
    assert answer_from(index, receiver, "Zanzibar?") == (None, [])
    for path in (tmp_path / "x").rglob("*"):  # no text is in it
        assert path.is_dir() or b"sells" not in path.read_bytes() or path.name == "vocab.index.json"


def test_words_of_one_character_and_of_scripts_without_spaces_are_found(system: LatentWire, tmp_path: Path) -> None:
    texts = ["米拉在塔尔登卖灯。", "エッダは橋を塗る", "에다는 다리를 칠한다", "Vitamin C in Plan 9", "Mira's lamps"]
    corpus = [Document(str(n), text) for n, text in enumerate(texts)]
    build_index(corpus, tmp_path / "x", lambda: system.sender, MADE_WITH)
    index = Index(tmp_path / "x")
    asked = ["谁卖灯。", "だれが橋を渡る", "다리", "c", "plan 9", "Tom's", "Tom\u2019s", "。"]
    assert [[hit.id for hit in index.search(one)] for one in asked] == [["0"], ["1"], ["2"], ["3"], ["3"], [], [], []]


def test_words_are_found_however_their_characters_are_composed(system: LatentWire, tmp_path: Path) -> None:
    corpus = [
        Document("composed", "the café in Zürich"),
        Document("apart", unicodedata.normalize("NFD", "la forêt 다리")),
    ]
    build_index(corpus, tmp_path / "x", lambda: system.sender, MADE_WITH)
    index = Index(tmp_path / "x")
    for word, found in {"Cafe\u0301": "composed", "Zürich": "composed", "forêt": "apart", "다리": "apart"}.items():
        assert [hit.id for hit in index.search(word)] == [found]


def test_words_that_were_taken_otherwise_are_taken_anew(system: LatentWire, tmp_path: Path) -> None:
    out = tmp_path / "x"
    build_index(CORPUS, out, lambda: system.sender, MADE_WITH)
    about, before = json.loads((out / "index.json").read_text()), state(out / "bm25")
    del about["tokenizer"]
    (out / "index.json").write_text(json.dumps(about))
    assert len(Index(out).search("lamps", 6)) == 6
    info = build_index(CORPUS, out, lambda: system.sender, MADE_WITH)
    assert (info["encoded"], Index(out).info["tokenizer"]) == (0, 3) and state(out / "bm25") != before


def test_texts_of_several_documents_do_not_run_into_each_other(
    system: LatentWire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system.sender, "chunk", 8)
    stranger, receiver = MADE_WITH | {"text": "beside"}, system.receivers["a"]
    build_index(CORPUS, tmp_path / "x", lambda: system.sender, stranger, with_text=True)
    hits = Index(tmp_path / "x").search("Where do Edda and Mira live?", 2)
    assert len(hits[0].message) > 1
    row = receiver._text_row([wire for hit in hits for wire in hit.message])
    both = "\n".join(document.text for hit in hits for document in CORPUS if document.id == hit.id)
    assert row == receiver._text_row([Wire.of(text=both)])


def test_an_index_that_was_updated_is_opened_again(system: LatentWire, tmp_path: Path) -> None:
    out = tmp_path / "x"
    build_index(CORPUS, out, lambda: system.sender, MADE_WITH)
    index = Index(out)
    build_index(CORPUS, out, lambda: system.sender, MADE_WITH)
    assert index.document(2)[0] == "d2"  # nothing has changed
    build_index(CORPUS[::-1], out, lambda: system.sender, MADE_WITH)
    changed = "x: the index has changed since it was opened; open it again"
    for _ in range(2):
        for query in ("Where does Edda live?", "Zanzibar"):
            with pytest.raises(DataError, match=changed):
                index.search(query)
        with pytest.raises(DataError, match=changed):
            index.document(2)
        (out / "index.json").unlink(missing_ok=True)  # as while a build is under way
        shutil.rmtree(out / "wires", ignore_errors=True)


def test_what_fails_before_anything_is_encoded_leaves_the_index(system: LatentWire, tmp_path: Path) -> None:
    out = tmp_path / "x"
    build_index(CORPUS, out, lambda: system.sender, MADE_WITH)
    before = state(out)

    def load() -> Sender:
        raise ModelError("not there")

    with pytest.raises(ModelError, match="not there"):
        build_index([*CORPUS, Document("new", "words")], out, load, MADE_WITH)
    with pytest.raises(DataError, match="two documents have the id 'd5'"):  # the first part would be written anew
        build_index([Document("d0", "words"), *CORPUS[1:], CORPUS[5]], out, lambda: system.sender, MADE_WITH)
    assert state(out) == before and len(Index(out)) == 6


def test_an_index_that_is_half_updated_is_none(system: LatentWire, tmp_path: Path) -> None:
    out = tmp_path / "x"
    build_index(CORPUS, out, lambda: system.sender, MADE_WITH)

    def stopped(encode: Callable[[Shard], Shard], shards: Iterable[Shard]) -> Iterator[Shard]:
        for shard in shards:
            if shard.number:
                raise KeyboardInterrupt
            yield encode(shard)

    with pytest.raises(KeyboardInterrupt):
        build_index(CORPUS[::-1], out, lambda: system.sender, MADE_WITH, engine=stopped)
    with pytest.raises(DataError, match="no finished index"):
        Index(out)
    assert build_index(CORPUS[::-1], out, lambda: system.sender, MADE_WITH)["encoded"] <= 2
    assert [Index(out).document(n)[0] for n in range(6)] == ["d5", "d4", "d3", "d2", "d1", "d0"]


def test_word_statistics_that_are_gone_are_made_again(system: LatentWire, tmp_path: Path) -> None:
    build_index(CORPUS, tmp_path / "x", lambda: system.sender, MADE_WITH)
    shutil.rmtree(tmp_path / "x" / "bm25")
    assert build_index(CORPUS, tmp_path / "x", lambda: system.sender, MADE_WITH)["encoded"] == 0
    assert len(Index(tmp_path / "x").search("lamps", 6)) == 6


def test_a_build_that_was_stopped_goes_on(system: LatentWire, tmp_path: Path) -> None:
    def stopped(done: int) -> None:
        raise KeyboardInterrupt

    out, loaded = tmp_path / "x", []

    def load() -> Any:
        loaded.append(1)
        return system.sender

    with pytest.raises(KeyboardInterrupt):
        build_index(CORPUS[:5], out, load, MADE_WITH, progress=stopped)
    with pytest.raises(DataError, match="no finished index there"):
        Index(out)
    first = state(out)
    assert [Path(path).name for path in first] == ["00000.parquet"]
    assert build_index(CORPUS, out, load, MADE_WITH)["encoded"] == 2 and len(loaded) == 2
    done = state(out)
    assert first.items() <= done.items()
    assert build_index(CORPUS, out, load, MADE_WITH)["encoded"] == 0
    assert state(out) == done and len(loaded) == 2


def test_only_documents_that_changed_are_encoded_again(system: LatentWire, tmp_path: Path) -> None:
    out = tmp_path / "x"

    def build(corpus: list[Document], made_with: dict[str, str] = MADE_WITH) -> int:
        return int(build_index(corpus, out, lambda: system.sender, made_with)["encoded"])

    build(CORPUS)
    changed = [*CORPUS[:5], Document("d5", "Pavel moved to Zanzibar.")]
    assert build(changed) == 1 and [hit.id for hit in Index(out).search("Zanzibar")] == ["d5"]
    more = [Document("d6", "Sana sails."), Document("d7", "Jon sings."), Document("d8", "Mosk is far.")]
    assert build([*changed, *more]) == 3
    assert len(Index(out)) == 9
    assert build(CORPUS[:3]) == 0 and len(list((out / "wires").iterdir())) == 1 and len(Index(out)) == 3
    (out / "wires" / "00000.parquet").write_bytes(b"PAR1 and no more")
    assert build(CORPUS[:3]) == 3
    assert build(CORPUS[:3], MADE_WITH | {"codec": "int8"}) == 3
    assert str(Index(out).document(0)[1][0].codec).startswith("int8")


def test_a_document_put_in_or_taken_out_leaves_the_others_as_they_are(system: LatentWire, tmp_path: Path) -> None:
    out = tmp_path / "x"

    def build(corpus: list[Document]) -> tuple[int, dict[str, list[bytes]]]:
        encoded = int(build_index(corpus, out, lambda: system.sender, MADE_WITH)["encoded"])
        index = Index(out)
        found = map(index.document, range(len(index)))
        return encoded, {name: [wire.to_bytes() for wire in message] for name, message in found}

    _, first = build(CORPUS)
    encoded, more = build([Document("new", "Sana sails."), *CORPUS])
    assert encoded == 1 and list(more) == ["new", *first] and more.items() >= first.items()
    assert build(CORPUS) == (0, first)


def test_what_cannot_be_indexed_is_named(system: LatentWire, tmp_path: Path) -> None:
    def build(*corpus: Document) -> None:
        build_index(corpus, tmp_path / "x", lambda: system.sender, MADE_WITH)

    with pytest.raises(DataError, match="x: there is no document"):
        build()
    with pytest.raises(DataError, match="x: two documents have the id 'd0'"):
        build(CORPUS[0], CORPUS[0])
    with pytest.raises(DataError, match="x: document 'half' is not valid Unicode"):
        build(Document("half", "a \ud800"))
    with pytest.raises(DataError, match="x: no document holds a word"):
        build(Document("a", "! ?"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system.sender, "chunk", 10_000)
        with pytest.raises(ModelError, match=r"documents 'd0', 'long': .*longer than the sender's window"):
            build(CORPUS[0], Document("long", "word " * 900))
    with pytest.raises(DataError, match="no finished index"):
        Index(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", b"mine"),
        ("index.json", b'{"my": "site"}'),
        ("wires/copper.parquet", b"PAR1"),
        ("wires/deep/x", b""),
        ("bm25/plan.md", b"mine"),
        ("bm25", b"mine"),
        ("wires/00000.parquet", None),
    ],
)
def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, name: str, content: bytes | None) -> None:
    out = tmp_path / "x"
    (out / name).parent.mkdir(parents=True)
    if content is None:
        parquet.write_table(pyarrow.table({"mine": [1]}), out / name)
    else:
        (out / name).write_bytes(content)
    before = state(out)
    found = re.escape(f"--out: {out} holds {name.removesuffix('x')}, which is no part of an index")
    with pytest.raises(DataError, match=found):
        build_index(CORPUS, out, _unloaded, MADE_WITH)
    assert state(out) == before


def test_a_file_is_no_place_for_an_index(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"mine")
    with pytest.raises(DataError, match="x is a file; an index is a folder"):
        build_index(CORPUS, tmp_path / "x", _unloaded, MADE_WITH)


def test_what_a_killed_process_or_the_system_left_is_no_hindrance(system: LatentWire, tmp_path: Path) -> None:
    out = tmp_path / "x"
    parts = ("wires/.00000.parquet.new-0123abcd", ".bm25.old-0123abcd/bm25/params", "wires/Thumbs.db")
    for left in (".index.json.new-0123abcd", ".DS_Store", *parts):
        (out / left).parent.mkdir(parents=True, exist_ok=True)
        (out / left).write_bytes(b"half")
    assert build_index(CORPUS, out, lambda: system.sender, MADE_WITH)["encoded"] == 6
    assert build_index(CORPUS, out, lambda: system.sender, MADE_WITH)["encoded"] == 0
    (out / "index.json").write_text('{"sender": "00", "docu')  # a damaged one is made anew
    assert build_index(CORPUS, out, lambda: system.sender, MADE_WITH)["encoded"] == 0
    assert len(Index(out)) == 6


# ---- documents ----------------------------------------------------------------------------------------------------


def test_a_damaged_index_is_named(system: LatentWire, tmp_path: Path) -> None:
    out = tmp_path / "x"

    def damaged(file: str, content: bytes, found: str) -> None:
        build_index(CORPUS, out, lambda: system.sender, MADE_WITH)
        kept = (out / file).read_bytes()
        (out / file).write_bytes(content)
        with pytest.raises(DataError, match=found):
            Index(out).search("lamps", 6)
        (out / file).write_bytes(kept)
        assert len(Index(out).search("lamps", 6)) == 6

    def changed(column: str, values: list[Any] | None) -> bytes:
        table = parquet.read_table(out / "wires" / "00000.parquet")
        table = table.drop([column]) if values is None else table.set_column(3, column, [values])
        parquet.write_table(table, tmp_path / "t.parquet", row_group_size=3)
        return (tmp_path / "t.parquet").read_bytes()

    damaged("index.json", b"[]", r"index\.json: not a JSON object")
    damaged("index.json", b"{}", r"index\.json: not that of an index")
    damaged("bm25/vocab.index.json", b"[1]", "bm25: its word statistics could not be read")
    damaged("wires/00000.parquet", b"PAR1", r"00000\.parquet: could not be read")
    damaged("wires/00000.parquet", changed("wire", None), r"00000\.parquet: could not be read")
    damaged("wires/00000.parquet", changed("wire", [b"junk"] * 4), r"00000\.parquet: document 'd\d': not the messages")
    damaged("wires/00000.parquet", changed("wire", [b""] * 4), r"00000\.parquet: document 'd\d': not the messages")


def test_documents_come_from_folders_lines_jsonl_and_parquet(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.txt").write_bytes(b"one\r\ntwo\n")
    (folder / "deep" / "a.md").write_text("three\n\nfour")
    (folder / "deep" / "c.TXT").write_text("five")
    (folder / "blank.txt").write_text(" \n")
    (folder / "image.png").write_bytes(b"\xff")

    def found(path: Path, **how: Any) -> list[tuple[str, str]]:
        return [(document.id, document.text) for document in read_documents(path, **how)]

    assert found(folder) == [("b.txt", "one\r\ntwo\n"), ("deep/a.md", "three\n\nfour"), ("deep/c.TXT", "five")]
    assert found(folder, lines=True) == [
        ("b.txt:1", "one"), ("b.txt:2", "two"), ("deep/a.md:1", "three"), ("deep/a.md:3", "four"),
        ("deep/c.TXT:1", "five"),
    ]  # fmt: skip
    assert found(folder / "b.txt", lines=True) == [("1", "one"), ("2", "two")]
    rows = [{"id": "x", "text": "one"}, {"text": "two"}, {"id": 7, "text": "", "body": "three"}, {"id": 0, "text": "0"}]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert found(tmp_path / "d.jsonl") == [("x", "one"), ("2", "two"), ("0", "0")]
    parquet.write_table(pyarrow.table({"id": ["x", None], "body": ["one", "two"]}), tmp_path / "d.parquet")
    assert found(tmp_path / "d.parquet", text_key="body") == [("x", "one"), ("2", "two")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone", None, "gone: no such file or folder"),
        ("x.txt", b"a\xff", "x.txt: not a UTF-8 text"),
        ("x.jsonl", b'{"text": "a"}\n\n{', "x.jsonl: line 3: not valid JSON"),
        ("x.jsonl", b'{"text": "a"}\n[1]', "x.jsonl: row 2: no text under 'text'"),
        ("x.parquet", b"no parquet", "x.parquet: could not be read"),
        ("x.txt", b" \n", "x.txt: no text in it"),
        ("x.jsonl", b"", "x.jsonl: no text in it"),
    ],
)
def test_what_is_no_document_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(tmp_path / name))


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = saved_run(tmp_path)
    (tmp_path / "d.txt").write_text("\n".join(TEXTS))
    words = ["index", str(tmp_path / "d.txt"), "--lines", "-o", str(tmp_path / "x"), "--ckpt", str(run)]
    first = latentwire([*words, "--codec", "int8"])
    assert "6 documents, 6 of them encoded now" in capsys.readouterr().out
    again = latentwire([*words, "--codec", "int8", "--json"])
    assert json.loads(capsys.readouterr().out) == again and (first["encoded"], again["encoded"]) == (6, 0)
    sender, index = Sender.from_pretrained(run), Index(tmp_path / "x")
    assert index.info["sender"] == (sender.fingerprint or b"").hex()
    reply, (hit,) = answer_from(index, Receiver.from_pretrained(run, "b"), "Where does Jon live?", max_new_tokens=4)
    assert hit.id == "4" and reply is not None and reply.source == "latents"
    assert latentwire([*words, "--text", "beside"])["encoded"] == 6
    assert Index(tmp_path / "x").document(3)[1][0].text == TEXTS[3]
    words[1] = str(tmp_path / "gone")
    assert "gone: no such file or folder" in fails(latentwire, words, capsys)


def test_messages_depend_on_all_that_makes_the_sender(tmp_path: Path) -> None:
    run = tmp_path / "run"
    on = {"use_latent_refiner": True, "use_sender_lora": True, "use_lora": True}
    save_checkpoint(run, small_system(small_config(features=on)))
    plain, config = recipe(run), load_config_of(run)
    own = config.encoder.model_dump(mode="json", exclude={"model", "companion", "companion_layers", "companion_d_z"})
    assert plain["encoder"] == stable_hash(own | {"dtype": config.model.dtype})
    changes = [
        {"features.use_latent_refiner": False, "latent_refiner": {}},
        {"features.use_sender_lora": False},
        {"latent_refiner.heads": 1},
        {"lora.alpha": 4},
        {"encoder.window": 2},
    ]
    made = [recipe(run, changes=one) for one in changes]
    assert len({one["encoder"] for one in [plain, *made]}) == 1 + len(changes)
    assert recipe(run, changes={"system.device": "cpu", "latent_refiner.heads": 2}) == plain
    assert recipe(run, changes={"data.max_context_tokens": 7}) == plain | {"chunk": "7"}
    assert recipe(run, "int8:group=16", "beside") == plain | {
        "codec": str(parse_codec("int8:group=16")),
        "text": "beside",
    }


def test_messages_depend_on_the_codebook_that_they_are_written_with(tmp_path: Path) -> None:
    system, made = small_system(small_config()), []
    for number, seed in enumerate((0, 0, 1)):
        system.sender.codebooks["rvq"] = sample_codebook("rvq", 16, 5, [4, 4], seed)
        save_checkpoint(tmp_path / str(number), system)
        made.append([recipe(tmp_path / str(number), codec) for codec in ("rvq", "rvq:layers=1", "fp16")])
    assert made[0] == made[1]
    assert [one == other for one, other in zip(made[0], made[2], strict=True)] == [False, False, True]


def test_the_figures_of_an_index(tmp_path: Path) -> None:
    run = saved_run(tmp_path)
    paragraphs = [
        {
            "context": p.context,
            "qas": [{"id": q.id, "question": q.text, "answers": [{"text": q.answers[0]}]} for q in p.questions],
        }
        for p in small_passages(6)
    ]
    (tmp_path / "q.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    (tmp_path / "t.txt").write_text("\n".join([TEXTS[0], *(f"Snow fell on peak number {n}." for n in range(9))]))
    words = ["--ckpt", run, "--data_path", tmp_path / "q.json", "--text_path", tmp_path / "t.txt"]
    words += [tmp_path / "out", "--paragraphs", 4, "--questions", 7]
    done = CliRunner().invoke(measure_index, list(map(str, words)))
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["documents"] == report["encoded"] == 10  # what is a passage already is not counted twice
    assert (report["searched"], report["answered"]) == (12, 7)
    rates = list(report["hit_rate"].values())
    assert rates == sorted(rates) and rates[0] >= 0.5 and rates[-1] <= 1  # every second question names its passage
    found = [way for receiver in report["receivers"].values() for way in receiver.values()]
    assert len(found) == 2 * 3 and all(way["f1_ci"][0] <= way["f1"] <= way["f1_ci"][1] for way in found)
    gone = CliRunner().invoke(measure_index, [*map(str, words), "--ckpt", str(tmp_path / "gone")])
    assert gone.exit_code == 1 and "gone" in gone.output and "Traceback" not in gone.output
