"""What every request passes first: whether it may come in, and for how long it may stay."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

from latentwire.serving.engine import Engine

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health", "/ready")
"""Paths that need no token: whoever restarts or routes to a service asks them."""
PATHS = (*OPEN, "/metrics", "/openapi.json", "/v1/receivers", "/v1/encode", "/v1/answer")
WORK = ("/v1/encode", "/v1/answer")
"""Paths whose requests take the models' time, and so have their places counted."""
LAST_WORDS = 5.0
"""Seconds that a stream has, when its time is over, to say so."""
DEADLINE = "latentwire.deadline"


class Gate:
    """An ASGI application around another: token, free places, time, and the count of what became of each request.

    A request that is refused costs nothing: its body is not read. One that is let in keeps its place until its answer
    is sent, and gets one: from the application, or, when its time is over, from here.
    """

    def __init__(self, app: App, engine: Engine, token: str | None = None):
        self.app, self.engine = app, engine
        self.limits, self.metrics = engine.limits, engine.metrics
        self.accepted = 0
        self._token = None if token is None else token.encode()
        self._too_long = f"a body of more than {self.limits.body} bytes"
        self.metrics.accepted.set_function(lambda: self.accepted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in PATHS else "other"
        status = 0

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        refusal = self._refusal(scope)
        started = time.perf_counter()
        try:
            if refusal:
                await _respond(counted, *refusal)
            elif path in WORK:
                await self._let_in(scope, receive, counted)
            else:
                await self.app(scope, receive, counted)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            if not refusal:
                self.metrics.seconds.labels(path).observe(time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> tuple[int, str, dict[str, str]] | None:
        """Status, reason and headers where a request may not come in."""
        if scope["path"] in OPEN:
            return None
        if self._token is not None and not hmac.compare_digest(_bearer(scope), self._token):
            return 401, "a bearer token is needed, and this is not the one", {"www-authenticate": "Bearer"}
        if scope["path"] not in WORK:
            return None
        if int(_header(scope, b"content-length") or b"0") > self.limits.body:
            return 413, self._too_long, {}
        if not self.engine.ready:
            return 503, "the models are still being loaded", {"retry-after": "5"}
        if self.accepted >= self.limits.queue:
            return 429, f"all {self.limits.queue} places are taken; try again", {"retry-after": "1"}
        return None

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, size = False, 0
        scope[DEADLINE] = deadline = asyncio.get_running_loop().time() + self.limits.seconds
        self.accepted += 1
        try:
            async with asyncio.timeout_at(deadline) as clock:

                async def timed(message: MutableMapping[str, Any]) -> None:
                    nonlocal begun
                    if not begun:
                        begun = True
                        clock.reschedule(deadline + LAST_WORDS)
                    await send(message)

                async def limited() -> MutableMapping[str, Any]:
                    nonlocal size
                    message = await receive()
                    size += len(message.get("body", b""))
                    if size > self.limits.body:  # its length was not announced
                        raise HTTPException(413, self._too_long)
                    return message

                await self.app(scope, limited, timed)
        except TimeoutError:
            if not begun:
                await _respond(send, 504, f"not answered within {self.limits.seconds:g} seconds", {})
        finally:
            self.accepted -= 1


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")


def _bearer(scope: Scope) -> bytes:
    kind, _, token = _header(scope, b"authorization").partition(b" ")
    return token.strip() if kind.lower() == b"bearer" else b""


async def _respond(send: Send, status: int, error: str, headers: dict[str, str]) -> None:
    body = json.dumps({"error": error}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))} | headers
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
