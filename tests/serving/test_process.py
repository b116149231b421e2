"""`latentwire serve` as a process: signals, a kill in the middle of load, and the load tester."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from latentwire import Receiver, Wire
from latentwire.cli.main import main as latentwire
from latentwire.cli.serve import TOKEN, _token
from latentwire.core.errors import DataError
from latentwire.serving.engine import Encode, Ends, Engine, ends_of
from latentwire.serving.http import create_app
from scripts.load_test import Phase, measure, request_bodies
from tests import ROOT
from tests.commands import fails
from tests.serving.running import engine_of, running
from tests.serving.test_http import until
from tests.systems import saved_run, small_passages

TEXT = small_passages(1)[0].context


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("served"))


def state(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextmanager
def process(run: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    """The verb in a process of its own, once it is ready."""
    command = [sys.executable, "-m", "latentwire", "serve", "--ckpt", str(run), "--port", "0", *words]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", server.stderr.readline())
            assert found and server.stderr.readline() == "ready\n"
            with httpx2.Client(
                base_url=found[1], timeout=60, limits=httpx2.Limits(max_keepalive_connections=0)
            ) as client:
                yield server, client
        finally:
            server.kill()


@contextmanager
def signals_kept() -> Iterator[None]:
    """Handlers of signals are afterwards what they were before."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def test_killed_under_load_it_starts_again_and_stopped_under_load_it_finishes_first(run: Path) -> None:
    before = state(run.parent)
    with process(run, "--batch", "1") as (server, client), ThreadPoolExecutor(4) as pool:
        data = client.post("/v1/encode", content=TEXT).content
        given = {
            "wire": base64.b64encode(data).decode(),
            "questions": ["Where does Mira live?"],
            "receiver": "b",
            "max_new_tokens": 64,
        }

        def ask() -> Any:
            try:
                return client.post("/v1/answer", json=given)
            except httpx2.HTTPError as error:
                return error

        right = ask().json()
        lost = [pool.submit(ask) for _ in range(4)]
        until(lambda: "latentwire_accepted_requests 4.0" in client.get("/metrics").text)
        server.kill()
        assert all(isinstance(reply.result(), httpx2.HTTPError) for reply in lost)
    assert state(run.parent) == before

    with process(run, "--batch", "1") as (server, client), ThreadPoolExecutor(8) as pool:
        accepted = [pool.submit(ask) for _ in range(8)]
        until(lambda: "latentwire_accepted_requests 8.0" in client.get("/metrics").text)
        server.send_signal(signal.SIGTERM)
        until(lambda: isinstance(ask(), httpx2.ConnectError))  # new ones are refused
        assert [reply.result().json() for reply in accepted] == [right] * 8
        assert server.wait(20) == 0 and server.stderr is not None and server.stderr.read() == "stopped\n"
    assert state(run.parent) == before


def test_a_receiver_s_service_loads_no_sender(run: Path) -> None:
    (run / "last" / "sender.safetensors").rename(run / "aside")
    try:
        load = ends_of(run, "receiver", ["b"], {"encoder.model": "/no/such/model"})
        own = load()
        assert own.sender is None and list(own.receivers) == ["b"]
        reply = Receiver.from_pretrained(run, "b").answer(Wire.of(text=TEXT), "Who?", 8)
        assert own.receivers["b"].answer(Wire.of(text=TEXT), "Who?", 8) == reply
    finally:
        (run / "aside").rename(run / "last" / "sender.safetensors")
    assert ends_of(run, "sender")().receivers == {}
    changes = {"system.sequential_models": True}
    turns = [receiver.lm.turns for receiver in ends_of(run, "receiver", changes=changes)().receivers.values()]
    assert len(turns) == 2 and turns[0] is turns[1] is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ckpt", "gone"], "gone: no checkpoint there"),
        (["--receiver", "c"], "has no receiver 'c' (it has: a, b)"),
        (["--token_file", "gone"], "--token_file: gone: no such file"),
        (["--token_file", "{binary}"], "binary: not a UTF-8 text: invalid start byte"),
        (["--token_file", "{empty}"], "no token in it"),
        (["--port", "{taken}"], "Address already in use"),
        (["--host", "ö..b"], "--host, --port: ö..b:"),
        (["--role", "neither"], "'neither' is not one of"),
        (["--override", "encoder.widow=4"], "encoder.widow"),
    ],
)
def test_a_mistake_ends_in_one_line(
    run: Path, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        files = {name: tmp_path / name for name in ("empty", "binary")}
        given = [word.format(**files, taken=taken.getsockname()[1]) for word in words]
        assert message in fails(latentwire, ["serve", "--ckpt", str(run), *given], capsys)


def test_the_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    assert _token(None) is None
    monkeypatch.setenv(TOKEN, " sesame\n")
    assert _token(None) == "sesame"
    monkeypatch.setenv(TOKEN, " ")
    with pytest.raises(DataError, match=f"{TOKEN}: no token in it"):
        _token(None)


def test_a_signal_that_comes_before_the_server_runs_stops_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin, configs = uvicorn.Server.run, []

    def late(server: uvicorn.Server, sockets: Any) -> None:
        configs.append(server.config)
        signal.raise_signal(signal.SIGTERM)
        assert server.should_exit
        begin(server, sockets)

    monkeypatch.setattr(uvicorn.Server, "run", late)
    with signals_kept():
        latentwire(["serve", "--ckpt", str(run), "--port", "0", "--grace", "0.5", "--access_log"])
    assert capsys.readouterr().err.endswith("stopped\n") and configs[0].timeout_graceful_shutdown == 0.5
    assert configs[0].log_config["handlers"]["access"]["stream"] == "ext://sys.stderr"


def stopped_early(run: Path, waited_for: threading.Event) -> None:
    """The verb, whose server is stopped while its thread waits for something, which comes afterwards."""
    with signals_kept():
        try:
            latentwire(["serve", "--ckpt", str(run), "--port", "0", "--grace", "0.5"])
        finally:
            waited_for.set()


def test_stopped_while_it_loads_it_does_not_wait(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin, loaded, codes = uvicorn.Server.run, threading.Event(), list[int]()

    def stopped(server: uvicorn.Server, sockets: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        begin(server, sockets)

    monkeypatch.setattr(uvicorn.Server, "run", stopped)
    monkeypatch.setattr("latentwire.serving.engine.ends_of", lambda *how: loaded.wait)
    monkeypatch.setattr(os, "_exit", codes.append)
    stopped_early(run, loaded)
    assert codes == [0] and capsys.readouterr().err.endswith("stopped\n")


def test_stopped_while_a_batch_runs_on_it_does_not_wait(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin, begun, done, codes = uvicorn.Server.run, threading.Event(), threading.Event(), list[int]()
    engines: list[Engine] = []

    def app_of(engine: Engine, token: str | None) -> Any:
        engines.append(engine)
        return create_app(engine, token)

    def work(*batch: Any) -> list[Any]:
        begun.set()
        done.wait()
        return [[]]

    def stopped(server: uvicorn.Server, sockets: Any) -> None:
        engines[0].encode(TEXT, Encode(None, False))
        assert begun.wait(10)
        signal.raise_signal(signal.SIGTERM)
        begin(server, sockets)

    monkeypatch.setattr(uvicorn.Server, "run", stopped)
    monkeypatch.setattr("latentwire.serving.engine.ends_of", lambda *how: Ends)
    monkeypatch.setattr("latentwire.serving.http.create_app", app_of)
    monkeypatch.setattr("latentwire.serving.http.CLOSING", 0.1)
    monkeypatch.setattr(Engine, "_work", work)
    monkeypatch.setattr(os, "_exit", codes.append)
    stopped_early(run, done)
    assert codes == [0] and capsys.readouterr().err.endswith("stopped\n")


def test_models_that_cannot_be_loaded_end_it_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["serve", "--ckpt", str(run), "--port", "0", "--override", "encoder.model=/no/such/model"]
    with signals_kept():
        assert "/no/such/model" in fails(latentwire, words, capsys).splitlines()[-1]


def test_at_ten_times_its_load_it_refuses_and_loses_nothing(run: Path, tmp_path: Path) -> None:
    engine = engine_of(ends_of(run, "both", ["a"])(), queue=6, batch=2)
    assert engine.ends.sender is not None
    (tmp_path / "x.lw").write_bytes(b"".join(w.to_bytes() for w in engine.ends.sender.encode_batch([TEXT, TEXT[:40]])))
    bodies = request_bodies(tmp_path / "x.lw", ["Where does Mira live?", "How many lamps?"], None, 48)
    with running(engine) as client:
        result = asyncio.run(measure(str(client.base_url), bodies, 2, 1.0, 10))
        assert client.get("/health").status_code == 200
    assert set(result["held"]["statuses"]) == {"200"} and set(result["over"]["statuses"]) == {"200", "429"}
    assert result["not_received"] == 0
    assert (result["lost"], result["held"]["wrong"], result["over"]["wrong"]) == (0, 0, 0)
    assert result["over"]["counted_by_service"] == result["over"]["statuses"]["200"] > 0
    assert result["held"]["p50_s"] <= result["held"]["p99_s"]


def test_what_is_neither_answered_nor_refused_is_lost() -> None:
    ended = Counter({"200": 1, "429": 1, "503": 1, "504": 1, "500": 1, "lost: ReadError": 1})
    assert Phase(1.0, ended, answered=[0.1], refused=[0.1, 0.1]).lost == 3
