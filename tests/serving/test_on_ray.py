"""An index made on a local Ray of two workers: killed in the middle, gone on with, and the same as that of one process.

The workers are processes of their own, so all goes through the command and a checkpoint of tiny models.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from pyarrow import parquet

from latentwire.cli.main import main as latentwire
from latentwire.core.errors import ConfigError, ModelError
from latentwire.data.documents import Document
from latentwire.serving import index_files
from latentwire.serving.build_index import Shard
from latentwire.serving.index import Index
from tests import ROOT
from tests.commands import fails
from tests.systems import saved_run, small_passages

KILLED = """
import os, signal, sys
from latentwire.cli.main import main
from latentwire.serving import index_files

def write_and_die(path, data, write=index_files.write_bytes):
    write(path, data)
    os.kill(os.getpid(), signal.SIGKILL)

index_files.SHARD, index_files.write_bytes = 2, write_and_die
main(sys.argv[1:])
"""


@pytest.mark.slow  # a local Ray takes half a minute to start on two slow cores, and there are two
def test_a_build_that_was_killed_goes_on_and_equals_that_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(index_files, "SHARD", 2)
    run, corpus, out = saved_run(tmp_path), tmp_path / "corpus.txt", tmp_path / "on_ray"
    texts = [passage.context for passage in small_passages(6)]
    corpus.write_text("\n".join([*texts, " ".join(texts)]))  # the last one takes several messages
    words = ["index", str(corpus), "--lines", "--ckpt", str(run), "--override", "data.max_context_tokens=64", "-o"]
    shared = ["--engine", "ray", "--workers", "2"]

    died = subprocess.run([sys.executable, "-c", KILLED, *words, str(out), *shared], cwd=ROOT, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    (first,) = (out / "wires").glob("*.parquet")
    written = first.stat().st_mtime_ns
    assert not (out / "index.json").exists()

    info = latentwire([*words, str(out), *shared, "--json"])
    assert json.loads(capsys.readouterr().out) == info
    done = parquet.read_table(first).num_rows
    assert (info["documents"], info["encoded"]) == (7, 7 - done) and first.stat().st_mtime_ns == written
    assert not ray.is_initialized()
    assert latentwire([*words, str(out), *shared])["encoded"] == 0

    latentwire([*words, str(tmp_path / "alone")])
    files = sorted(path.name for path in (out / "wires").iterdir())
    assert files == [f"{n:05d}.parquet" for n in range(4)]
    for name in [*(f"wires/{file}" for file in files), "index.json"]:
        assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    assert len(Index(out).document(6)[1]) > 1


def test_too_many_workers_are_refused_before_all_texts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    from latentwire.serving import on_ray

    monkeypatch.setattr(on_ray, "_cluster", nullcontext)
    monkeypatch.setattr(on_ray.ray, "cluster_resources", lambda: {"CPU": 2.0})
    shards = [Shard(number, [Document(str(number), "text")], [None]) for number in range(3)]
    rest = iter(shards)
    with pytest.raises(ConfigError, match="--workers: 9 asked for, and the Ray cluster has room for 2"):
        list(on_ray.ray_engine(9)(lambda shard: shard, rest))
    assert list(rest) == shards[1:]


def test_what_a_worker_cannot_encode_comes_back_as_a_line() -> None:
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    from latentwire.serving.on_ray import Worker, _to_row, _to_shard, _to_table

    def encode(shard: Shard) -> Shard:
        if shard.number:
            raise ModelError("documents 'a': too long")
        return Shard(shard.number, shard.documents, [message or b"new" for message in shard.messages])

    documents = [Document("a", "one"), Document("b", "two")]
    given = _to_table([_to_row(Shard(number, documents, [None, b"old"])) for number in (0, 1)])
    good, bad = Worker(encode)(given).to_pylist()
    assert (good["error"], _to_shard(good)) == (None, Shard(0, documents, [b"new", b"old"]))
    assert bad["error"] == "documents 'a': too long"


def test_workers_are_for_ray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["index", str(tmp_path), "-o", str(tmp_path / "x"), "--workers", "2"]
    assert "--workers: only with --engine ray" in fails(latentwire, words, capsys)
