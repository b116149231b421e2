"""What every request passes first: whether it may come in, and for how long it may stay."""

from __future__ import annotations

import asyncio
import hmac
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentwire.serving.engine import Engine

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

    def __init__(self, app: ASGIApp, engine: Engine, token: str | None = None):
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

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        refusal = self._refusal(scope)
        started = time.perf_counter()
        try:
            if refusal:
                await refusal(scope, receive, counted)
            elif path in WORK:
                await self._let_in(scope, receive, counted)
            else:
                await self.app(scope, receive, counted)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            if not refusal:
                self.metrics.seconds.labels(path).observe(time.perf_counter() - started)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """The answer where a request may not come in."""
        if scope["path"] in OPEN:
            return None
        headers = Headers(scope=scope)
        if self._token is not None and not hmac.compare_digest(_bearer(headers), self._token):
            why = "a bearer token is needed, and this is not the one"
            return _error(401, why, {"www-authenticate": "Bearer"})
        if scope["path"] not in WORK:
            return None
        if int(headers.get("content-length") or 0) > self.limits.body:
            return _error(413, self._too_long)
        if not self.engine.ready:
            return _error(503, "the models are still being loaded", {"retry-after": "5"})
        if self.accepted >= self.limits.queue:
            return _error(429, f"all {self.limits.queue} places are taken; try again", {"retry-after": "1"})
        return None

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, size = False, 0
        scope[DEADLINE] = deadline = asyncio.get_running_loop().time() + self.limits.seconds
        self.accepted += 1
        try:
            async with asyncio.timeout_at(deadline) as clock:

                async def timed(message: Message) -> None:
                    nonlocal begun
                    if not begun:
                        begun = True
                        clock.reschedule(deadline + LAST_WORDS)
                    await send(message)

                async def limited() -> Message:
                    nonlocal size
                    message = await receive()
                    size += len(message.get("body", b""))
                    if size > self.limits.body:  # its length was not announced
                        raise HTTPException(413, self._too_long)
                    return message

                await self.app(scope, limited, timed)
        except TimeoutError:
            if not begun:
                late = _error(504, f"not answered within {self.limits.seconds:g} seconds")
                await late(scope, receive, send)
        finally:
            self.accepted -= 1


def _bearer(headers: Headers) -> bytes:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.encode("latin-1").strip() if kind.lower() == "bearer" else b""  # as headers are decoded


def _error(status: int, error: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": error}, status, headers)
