from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from latentwire.core import atomic
from latentwire.core.atomic import atomic_dir, make_folder, write_bytes
from latentwire.core.errors import LatentWireError
from latentwire.core.json_files import append_jsonl, read_json, read_jsonl, write_json, write_jsonl
from latentwire.core.manifest import run_manifest


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "eval.json"
    write_json(path, {"old": 1})

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LatentWireError, match=r"eval\.json: could not be written: No space left on device"):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert os.listdir(tmp_path) == ["eval.json"]


def test_a_link_leads_to_what_is_written_and_a_file_keeps_who_may_read_it(tmp_path: Path) -> None:
    (tmp_path / "private").write_bytes(b"old")
    (tmp_path / "private").chmod(0o600)
    (tmp_path / "link").symlink_to("private")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "private").read_bytes() == b"new" and (tmp_path / "link").is_symlink()
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    before = os.umask(0o077)
    try:
        write_bytes(tmp_path / "fresh", b"new")
        with atomic_dir(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("fresh", "folder")] == [0o600, 0o700]


def test_a_pipe_gets_what_is_written_and_stays_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_bytes(tmp_path / "pipe", b"message")
    reader.join(10)
    assert got == [b"message"] and (tmp_path / "pipe").is_fifo()


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "d") as new:
        (new / "a").write_text("1")
    with pytest.raises(ValueError), atomic_dir(tmp_path / "d") as new:
        (new / "a").write_text("2")
        raise ValueError
    assert (tmp_path / "d" / "a").read_text() == "1"
    assert os.listdir(tmp_path) == ["d"]
    (tmp_path / "link").symlink_to("d")
    with atomic_dir(tmp_path / "link") as new:
        (new / "a").write_text("3")
    assert (tmp_path / "d" / "a").read_text() == "3" and (tmp_path / "link").is_symlink()


def test_a_folder_that_is_replaced_is_there_at_every_moment(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.mkdir()
    if not atomic._exchange(Path(shutil.copytree(path, tmp_path / "other")), path):
        pytest.skip("two folders cannot be swapped here")
    (tmp_path / "other").rmdir()
    done, gone = threading.Event(), []

    def look() -> None:
        while not done.is_set():
            gone.extend([1] if not path.is_dir() else [])

    watcher = threading.Thread(target=look)
    watcher.start()
    for number in range(200):
        with atomic_dir(path) as new:
            (new / "a").write_text(str(number))
    done.set()
    watcher.join()
    assert not gone and (path / "a").read_text() == "199" and os.listdir(tmp_path) == ["d"]


@pytest.mark.parametrize("swaps", [True, False])
def test_what_a_killed_process_left_is_removed_when_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    if not swaps:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    kept = {"d", "d2", ".d.settings", ".d.new-young", ".d2.new-other"}
    for name in (*kept, ".d.new-dead", ".d.old-dead"):
        (tmp_path / name / "deep").mkdir(parents=True)
        if not name.endswith("young"):
            os.utime(tmp_path / name, (0, 0))
    with atomic_dir(tmp_path / "d") as new:
        (new / "a").write_text("1")
    assert set(os.listdir(tmp_path)) == kept and os.listdir(tmp_path / "d") == ["a"]


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LatentWireError, match=r"file/eval\.json: could not be written"):
        write_json(tmp_path / "file" / "eval.json", {})
    with pytest.raises(LatentWireError, match=r"file: could not be written"):
        make_folder(tmp_path / "file")
    make_folder(tmp_path / "new" / "folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "TemporaryFile", denied)
        with pytest.raises(LatentWireError, match=r"folder: could not be written: Permission denied"):
            make_folder(tmp_path / "new" / "folder")
    assert not list((tmp_path / "new" / "folder").iterdir())


def denied(**kwargs: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_the_manifest_is_plain_json() -> None:
    manifest = run_manifest({"a": 1}, ["python"])
    assert json.loads(json.dumps(manifest)) == manifest
    assert manifest["versions"]["torch"] and manifest["config"] == {"a": 1}


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with atomic_dir(tmp_path / "c") as folder:
        (folder / "x").write_text("old")
    replace = os.replace

    def fail_to_move_in(source: object, target: object) -> None:
        if Path(str(target)) == tmp_path / "c" and ".old-" not in str(source):
            raise OSError("no")
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "replace", fail_to_move_in)
    with pytest.raises(LatentWireError, match="could not be written"), atomic_dir(tmp_path / "c") as folder:
        (folder / "x").write_text("new")
    assert (tmp_path / "c" / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_json_that_is_nested_too_deep_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "deep.jsonl").write_text("[" * 100_000 + "\n")
    for read, name in ((read_json, "deep.json"), (read_jsonl, "deep.jsonl")):
        with pytest.raises(LatentWireError, match=rf"{name}: .*not valid JSON"):
            read(tmp_path / name)


def test_a_json_file_that_is_not_there_or_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(LatentWireError, match=r"gone\.json: no such file"):
        read_json(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(LatentWireError, match=r"bad\.json: not valid JSON"):
        read_json(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_bytes(b"\xff")
    with pytest.raises(LatentWireError, match=r"bad\.json: not a UTF-8 text: invalid start byte$"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(LatentWireError, match=r"^where: could not be read: Is a directory$"):
        read_json(tmp_path, where="where")


def test_lines_of_json_survive_any_text_and_a_line_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows = [{"text": "a\u2028b\x85c\nd 🏮"}, {"loss": float("nan")}]
    write_jsonl(path, rows)
    append_jsonl(path, {"step": 3})
    expected = [rows[0], {"loss": None}, {"step": 3}]
    path.write_bytes(path.read_bytes() + b'{"step": 4}')
    assert read_jsonl(path) == expected  # whole as it looks, it may be the beginning of {"step": 4}x
    assert read_jsonl(path) == expected
    with open(path, "a") as file:
        file.write('{"step": 4')
    assert read_jsonl(path) == expected
    append_jsonl(path, {"step": 5})  # in place of what was cut off
    expected.append({"step": 5})
    assert read_jsonl(path) == expected
    with open(path, "a") as file:
        file.write('{"long": "' + "x" * 200_000)
    append_jsonl(path, {"step": 6})
    assert read_jsonl(path) == [*expected, {"step": 6}]
    with open(path, "a") as file:
        file.write('{"step": 7\n')
    with pytest.raises(LatentWireError, match=r"log\.jsonl: line 6: not valid JSON"):
        read_jsonl(path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(LatentWireError, match=r"log\.jsonl: not a UTF-8 text: invalid start byte$"):
        read_jsonl(path)
