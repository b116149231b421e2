"""A real server in a thread, on a free port of this machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import uvicorn

from latentwire.model.receiver import Receiver
from latentwire.serving.engine import Ends, Engine, Limits
from latentwire.serving.http import create_app


@contextmanager
def running(engine: Engine, token: str | None = None) -> Iterator[httpx2.Client]:
    """Serve an engine within the block; gives a client of the service."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(engine, token), log_level="critical"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def engine_of(ends: Ends, role: Any = "both", **limits: Any) -> Engine:
    engine = Engine(lambda: ends, Limits(**limits), role)
    engine.batcher.ready.result(10)
    return engine


class Held:
    """Holds a receiver's answers back until it is let go, and counts what it was asked."""

    def __init__(self, receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
        self.go = threading.Event()
        self.begun = threading.Event()
        self.batches: list[int] = []
        answer = receiver.answer_batch

        def held(messages: Any, questions: Any, *more: Any) -> Any:
            self.batches.append(len(messages))
            self.begun.set()
            assert self.go.wait(30)
            return answer(messages, questions, *more)

        monkeypatch.setattr(receiver, "answer_batch", held)
