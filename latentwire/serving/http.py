"""The HTTP service: text to messages, messages and questions to answers. docs/serving.md describes it for its users."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, format_sse_event
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from latentwire.core.errors import LatentWireError, ModelError, WireError
from latentwire.model.receiver import Reply
from latentwire.serving.engine import Answer, Ask, Encode, Engine, TooLarge
from latentwire.serving.gate import DEADLINE, Gate
from latentwire.wire.codecs import parse_codec
from latentwire.wire.frame import Frame, read_frames
from latentwire.wire.message import Wire, by_text

T = TypeVar("T")
NEW_TOKENS = 24
"""Most new tokens of an answer to a request that does not say."""
GONE = 499
"""Status, in the counts alone, of a request whose client left before the answer."""
CLOSING = 5.0
"""Seconds that a batch under way has to end once the service closes."""
MESSAGES = "application/octet-stream"
FAILED = "the service failed at this request; its log says more"


def _of_base64(text: Any) -> bytes:
    """The bytes behind base64, which may be broken into lines; ValueError for anything else in it."""
    if not isinstance(text, str):
        raise ValueError("not a string")
    return b64decode("".join(text.split()), validate=True)


Base64 = Annotated[bytes, BeforeValidator(_of_base64, json_schema_input_type=str)]


class Questions(BaseModel):
    """Questions on one text, given by its messages."""

    model_config = ConfigDict(extra="forbid")
    wire: Base64 = Field(description="The text's messages, one behind the other, in base64.")
    questions: list[str] = Field(min_length=1)
    receiver: str | None = Field(None, description="May be left out where the service has one receiver.")
    max_new_tokens: int | None = Field(None, ge=1, description="Default: 24, or less where less is allowed.")
    stream: bool = Field(False, description="Send answers as they grow, as server-sent events.")

    @field_validator("questions")
    @classmethod
    def _unicode(cls, questions: list[str]) -> list[str]:
        for question in questions:
            if not question.strip():
                raise ValueError("nothing is asked")
            question.encode()  # JSON can escape half a character, which is a ValueError here
        return questions


def create_app(engine: Engine, token: str | None = None) -> Gate:
    """The service as an ASGI application. It closes its engine when it is shut down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.batcher.close, CLOSING)

    # No page of its own: those that come with FastAPI load scripts from elsewhere.
    app = FastAPI(title="LatentWire", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.exception_handler(RequestValidationError)(_on_invalid)
    app.exception_handler(HTTPException)(_on_refused)
    app.exception_handler(LatentWireError)(_on_error)
    app.exception_handler(ClientDisconnect)(_on_gone)
    app.exception_handler(Exception)(_on_failure)

    @app.get("/health")
    async def health() -> Response:
        """Whether the process can work at all; if not, it should be started again."""
        alive = engine.batcher.alive
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    @app.get("/ready")
    async def ready() -> Response:
        """Whether the models are loaded."""
        return JSONResponse({"ready": engine.ready}, 200 if engine.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(engine.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    @app.get("/v1/receivers")
    async def receivers() -> dict[str, Any]:
        """What this service can do: its role, limits, sender and receivers."""
        sender = engine.ends.sender
        return {
            "role": engine.role,
            "limits": asdict(engine.limits),
            "sender": None if sender is None else {"id": _hex(sender.fingerprint), "codec": str(sender.codec)},
            "receivers": [
                {"name": name, "model": receiver.lm.name, "sender": _hex(receiver.sender)}
                for name, receiver in engine.ends.receivers.items()
            ],
        }

    if engine.role != "receiver":
        body = {"content": {"text/plain": {"schema": {"type": "string"}}}, "required": True}

        @app.post("/v1/encode", openapi_extra={"requestBody": body}, response_class=Response)
        async def encode(
            request: Request, codec: str | None = None, text: Literal["none", "beside"] = "none"
        ) -> Response:
            """The messages of the UTF-8 text in the body, one behind the other."""
            task = Encode(None if codec is None else str(parse_codec(codec)), text == "beside")
            try:
                content = (await request.body()).decode("utf-8-sig")  # as the command line reads a file
            except UnicodeDecodeError as error:
                raise HTTPException(400, f"the body is not a UTF-8 text: {error.reason}") from None
            if not content.strip():
                raise HTTPException(400, "the text is empty")
            for name in set(request.query_params) - {"codec", "text"}:
                raise HTTPException(422, f"{name}: there is no such parameter")
            wires = await _while_there(request, asyncio.wrap_future(engine.encode(content, task)))
            data = b"".join(wire.to_bytes() for wire in wires)
            engine.metrics.wire_bytes.labels("encode").inc(len(data))
            return Response(data, media_type=MESSAGES, headers={"x-latentwire-messages": str(len(wires))})

    if engine.role != "sender":

        @app.post("/v1/answer", response_class=JSONResponse)
        async def answer(body: Questions, request: Request) -> Response:
            """Answers to questions on one text."""
            task, ask = await asyncio.to_thread(_check, body, engine)
            engine.metrics.wire_bytes.labels(task.receiver).inc(len(body.wire))
            if body.stream:
                return await _stream(request, engine, task, ask)
            try:
                replies = await _while_there(request, asyncio.wrap_future(engine.answer(ask, task)))
            finally:
                ask.stopped = True
            return JSONResponse(_answers(task, ask, replies))

    return Gate(app, engine, token)


def _check(body: Questions, engine: Engine) -> tuple[Answer, Ask]:
    """A request for answers as a task, if it is one that can be done here."""
    limits, known = engine.limits, engine.ends.receivers
    name = body.receiver or (next(iter(known)) if len(known) == 1 else None)
    if name not in known:
        wrong = "none is named" if name is None else f"{name!r} is not here"
        raise HTTPException(404, f"receiver: {wrong} (there are: {', '.join(known)})")
    if len(body.questions) > limits.batch:
        raise TooLarge(f"questions: {len(body.questions)}; at most {limits.batch} are taken")
    longest = max(map(len, body.questions))
    if longest > limits.question:
        raise TooLarge(f"questions: one of {longest} characters; at most {limits.question} are taken")
    new_tokens = body.max_new_tokens or min(NEW_TOKENS, limits.new_tokens)
    if new_tokens > limits.new_tokens:
        raise TooLarge(f"max_new_tokens: {new_tokens}; at most {limits.new_tokens} are made")
    wires = list(map(Wire, map(Frame.unpack, islice(read_frames(io.BytesIO(body.wire)), limits.messages + 1))))
    if len(wires) > limits.messages:
        raise TooLarge(f"wire: more than {limits.messages} messages")
    texts = list(by_text(wires))
    if len(texts) != 1:
        raise WireError(f"wire: messages of {len(texts)} texts; a request has those of one")
    # Before anything is decoded: a byte may stand for 64 of a text, or for many numbers.
    if sum(wire.text_size for wire in wires) > limits.body:
        raise TooLarge(f"wire: a text of more than {limits.body} bytes")
    latents = sum(wire.latent_count for wire in wires)
    if latents > limits.text_tokens:
        raise TooLarge(f"wire: {latents} latents; at most {limits.text_tokens} are taken")
    for wire in wires:
        wire.check()
    try:
        known[name].why_text(texts[0])
    except WireError as error:  # a sound message, but not for this receiver
        raise HTTPException(409, str(error)) from None
    return Answer(name, new_tokens), Ask(texts[0], body.questions)


async def _while_there(request: Request, awaited: Awaitable[T]) -> T:
    """What is awaited, as long as the client waits for it too; cancelled where nobody does any more."""
    result = asyncio.ensure_future(awaited)
    try:
        while not (await asyncio.wait([result], timeout=0.5))[0]:
            if await request.is_disconnected():
                raise HTTPException(GONE, "the client left")
        return result.result()
    finally:
        result.cancel()


async def _stream(request: Request, engine: Engine, task: Answer, ask: Ask) -> Response:
    """Answers as events, once there is a first token or all is done."""
    answering = Answering(engine, task, ask)
    try:
        first = await _while_there(request, answering.grown.get())
        if first is None:
            answering.done.result()  # what fails before the first token is an error like any other
    except BaseException:
        answering.stop()
        raise
    return EventSourceResponse(answering.events(first, request.scope[DEADLINE]))


Grown = tuple[int, str]
"""The number of a question, and all of its answer so far."""


class Answering:
    """Answers that are sent while they grow.

    grown: what the engine's thread has told of so far, and None once all is done.
    """

    def __init__(self, engine: Engine, task: Answer, ask: Ask):
        self.task = task
        self.ask = ask
        self.seconds = engine.limits.seconds
        self.sent = [""] * len(ask.questions)
        self.grown: asyncio.Queue[Grown | None] = asyncio.Queue()
        self.loop = asyncio.get_running_loop()
        ask.seen = self._seen
        self.job = engine.answer(ask, task)
        self.done = asyncio.wrap_future(self.job)
        self.done.add_done_callback(lambda _: self.grown.put_nowait(None))

    def _seen(self, number: int, text: str) -> None:
        """Called by the engine, in a thread of its own."""
        self.loop.call_soon_threadsafe(self.grown.put_nowait, (number, text))

    def stop(self) -> None:
        """Nobody waits for the answers any more, or they are there."""
        self.ask.stopped = True
        self.job.cancel()

    async def events(self, first: Grown | None, deadline: float) -> AsyncIterator[bytes]:
        """`delta` for each piece of an answer, then `done` with all, or `error`; deadline: in seconds of the loop."""
        try:
            step = first
            while step is not None:
                for event in self._deltas(*step):
                    yield event
                step = await asyncio.wait_for(self.grown.get(), deadline - self.loop.time())
            replies = self.done.result()
            for number, reply in enumerate(replies):
                for event in self._deltas(number, reply.text):
                    yield event
            yield _event("done", _answers(self.task, self.ask, replies))
        except TimeoutError:
            yield _event("error", {"error": f"not answered within {self.seconds:g} seconds"})
        except LatentWireError as error:
            yield _event("error", {"error": str(error)})
        except Exception:
            logging.getLogger(__name__).exception("a stream of answers failed")
            yield _event("error", {"error": FAILED})
        finally:  # also when the client leaves
            self.stop()

    def _deltas(self, number: int, text: str) -> list[bytes]:
        """The event with what is new of an answer; none where nothing is, or what was sent has changed."""
        sent = self.sent[number]
        if text == sent or not text.startswith(sent):
            return []
        self.sent[number] = text
        return [_event("delta", {"question": number, "text": text.removeprefix(sent)})]


def _event(name: str, data: dict[str, Any]) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(data, ensure_ascii=False))


def _answers(task: Answer, ask: Ask, replies: Sequence[Reply]) -> dict[str, Any]:
    answers = [
        {"question": question, "answer": reply.text, "source": reply.source, "note": reply.note}
        for question, reply in zip(ask.questions, replies, strict=True)
    ]
    return {"receiver": task.receiver, "answers": answers}


def _hex(fingerprint: bytes | None) -> str | None:
    return None if fingerprint is None else fingerprint.hex()


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = "" if first["type"] == "json_invalid" else ".".join(str(part) for part in first["loc"][1:])
    what = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"]
    if not where and isinstance(error.body, bytes):  # then FastAPI did not read it as JSON
        where, what = "content-type", "application/json is expected"
    return JSONResponse({"error": f"{where or 'body'}: {what}"}, 422)


async def _on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, ClientDisconnect):  # FastAPI takes it for a body that cannot be parsed
        return await _on_gone(request, error)
    return JSONResponse({"error": error.detail}, error.status_code)


async def _on_gone(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the client left"}, GONE)


async def _on_failure(request: Request, error: Exception) -> Response:
    """What nobody thought of; the server logs it with its traceback."""
    return JSONResponse({"error": FAILED}, 500, {"connection": "close"})  # which the server does


async def _on_error(request: Request, error: Exception) -> Response:
    """413 for what is above a limit, 422 for what a model cannot read, 400 for what is no message."""
    status = 413 if isinstance(error, TooLarge) else 422 if isinstance(error, ModelError) else 400
    return JSONResponse({"error": str(error)}, status)
