"""The service over real connections, on tiny models."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import socket
import string
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest
from starlette.exceptions import HTTPException

from latentwire import Receiver, Wire
from latentwire.core.errors import CheckpointError, LatentWireError
from latentwire.model.receiver import Reply
from latentwire.serving import gate, http
from latentwire.serving.batching import Batcher, Job
from latentwire.serving.engine import Answer, Ask, Ends, Engine, Limits
from latentwire.serving.http import FAILED
from latentwire.wire.frame import Frame
from latentwire.wire.message import read_texts
from latentwire.wire.text import pack_text
from tests.serving.running import Held, engine_of, running
from tests.systems import small_config, small_passages, small_system

TEXTS = [p.context for p in small_passages(4)]
QUESTIONS = ["Where does Mira live?", "How many lamps?"]
EXPECTED = b"expected"
LONG = "".join(random.Random(0).choices(string.ascii_letters, k=1000)) * 25
"""It shrinks to less than the longest body here."""
WIDE = LONG[:12_000].translate({ord(letter): ord(letter) + 0x100 for letter in string.ascii_letters})
"""Two bytes a character: it has fewer characters than the longest body has bytes."""
DAMAGED = pack_text(LONG)[:-40] + bytes(40)
"""Packed, it still tells how long the text was, but cannot be unpacked."""


@pytest.fixture(scope="module")
def ends() -> Ends:
    system = small_system(small_config())
    system.sender.fingerprint = EXPECTED
    for receiver in system.receivers.values():
        receiver.sender = EXPECTED
    return Ends(system.sender, system.receivers)


@pytest.fixture(scope="module")
def client(ends: Ends) -> Iterator[httpx2.Client]:
    limits = {"body": 20_000, "text_tokens": 900, "question": 3000, "new_tokens": 16, "batch": 4, "messages": 40}
    with running(engine_of(ends, **limits)) as client:
        yield client


def body(
    wire: Wire | bytes, questions: list[str] | None = None, receiver: str | None = "a", **more: Any
) -> dict[str, Any]:
    data = wire if isinstance(wire, bytes) else wire.to_bytes()
    given = {"wire": base64.b64encode(data).decode(), "questions": questions or QUESTIONS, "max_new_tokens": 6}
    return given | ({"receiver": receiver} if receiver else {}) | more


def answers(receiver: Receiver, wires: Any, questions: list[str] | None = None, new: int = 6) -> list[str]:
    return [reply.text for reply in receiver.answer_batch([wires], [questions or QUESTIONS], new)[0]]


def texts_of(reply: httpx2.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    return [answer["answer"] for answer in reply.json()["answers"]]


def events(reply: httpx2.Response) -> list[tuple[str, Any]]:
    """The server-sent events of a body."""
    assert reply.headers["content-type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in reply.text.split("\n\n") if block]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- what it does -------------------------------------------------------------------------------------------------


def test_a_text_becomes_a_message_that_every_receiver_answers_from(client: httpx2.Client, ends: Ends) -> None:
    sent = client.post("/v1/encode", params={"codec": "int8", "text": "beside"}, content=TEXTS[0])
    assert (sent.status_code, sent.headers["content-type"]) == (200, "application/octet-stream")
    wire = Wire.from_bytes(sent.content)
    assert ends.sender is not None and wire == ends.sender.encode(TEXTS[0], "int8", with_text=True)
    marked = client.post("/v1/encode", params={"codec": "int8", "text": "beside"}, content=f"\ufeff{TEXTS[0]}")
    assert marked.content == sent.content  # the mark at a file's beginning is none of its text
    assert str(Wire.from_bytes(client.post("/v1/encode", content=TEXTS[0]).content).codec) == "fp16"
    for name, receiver in ends.receivers.items():
        reply = client.post("/v1/answer", json=body(wire, receiver=name))
        assert texts_of(reply) == answers(receiver, wire)
        assert reply.json()["receiver"] == name
        assert [(a["question"], a["source"], a["note"]) for a in reply.json()["answers"]] == [
            (question, "latents", None) for question in QUESTIONS
        ]


def test_a_longer_text_takes_several_messages(
    client: httpx2.Client, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends.sender, "chunk", 60)
    sent = client.post("/v1/encode", content="\n".join(TEXTS))
    ((*parts,),) = read_texts(io.BytesIO(sent.content))
    assert sent.headers["x-latentwire-messages"] == str(len(parts)) and len(parts) > 2
    assert texts_of(client.post("/v1/answer", json=body(sent.content))) == answers(ends.receivers["a"], parts)
    most = [Wire.of(text="a", more=n < 39).to_bytes() for n in range(40)]
    assert len(texts_of(client.post("/v1/answer", json=body(b"".join(most), ["?"] * 4)))) == 4  # all that is taken


def test_the_text_in_a_message_is_read_where_its_latents_are_not_for_the_receiver(
    client: httpx2.Client, ends: Ends
) -> None:
    stranger = Wire.of(np.ones((2, 16)), text=TEXTS[0], sender=b"stranger")
    reply = client.post("/v1/answer", json=body(stranger)).json()["answers"][0]
    assert reply["source"] == "text" and "comes from sender" in reply["note"]
    assert reply["answer"] == ends.receivers["a"].answer(Wire.of(text=TEXTS[0]), QUESTIONS[0], 6).text


def test_answers_are_streamed(client: httpx2.Client, ends: Ends) -> None:
    wire = ends.sender.encode(TEXTS[1]) if ends.sender else None
    assert wire is not None
    unsaid = body(wire)
    del unsaid["max_new_tokens"]  # 24 is more than this service makes
    assert (
        client.post("/v1/answer", json=unsaid).json()
        == client.post("/v1/answer", json=body(wire, max_new_tokens=16)).json()
    )
    plain = client.post("/v1/answer", json=body(wire, max_new_tokens=16))
    *deltas, (last, done) = events(client.post("/v1/answer", json=body(wire, max_new_tokens=16, stream=True)))
    assert last == "done" and done == plain.json() and {name for name, _ in deltas} == {"delta"}
    for number, text in enumerate(texts_of(plain)):
        assert "".join(data["text"] for _, data in deltas if data["question"] == number) == text
    assert len(deltas) > 4


def test_it_says_what_it_is_and_what_it_did(client: httpx2.Client, ends: Ends) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"ready": True}
    here = client.get("/v1/receivers").json()
    assert here["role"] == "both" and here["limits"]["batch"] == 4
    assert here["sender"] == {"id": EXPECTED.hex(), "codec": "fp16"}
    assert here["receivers"] == [
        {"name": name, "model": f"tiny-{family}", "sender": EXPECTED.hex()}
        for name, family in (("a", "llama"), ("b", "gemma3"))
    ]
    assert set(client.get("/openapi.json").json()["paths"]) >= {"/v1/encode", "/v1/answer"}
    client.get("/no/such/path")
    shown = client.get("/metrics").text
    for line in (
        'latentwire_requests_total{path="/health",status="200"}',
        'latentwire_requests_total{path="other",status="404"}',
        "latentwire_accepted_requests 0.0",
        "latentwire_waiting_jobs 0.0",
    ):
        assert line in shown
    assert "/no/such" not in shown


# ---- what it refuses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "status", "reason"),
    [
        ({"content": "x" * 20_001}, 413, "a body of more than 20000 bytes"),
        ({"content": iter([b"x" * 15_000] * 2)}, 413, "a body of more than 20000 bytes"),
        ({"content": b" " * 20_000}, 400, "the text is empty"),
        ({"content": iter([b" " * 10_000] * 2)}, 400, "the text is empty"),
        ({"content": "word " * 1000}, 413, "at most 900 are taken"),
        ({"content": b""}, 400, "the text is empty"),
        ({"content": b" \n"}, 400, "the text is empty"),
        ({"content": "\ufeff\n"}, 400, "the text is empty"),
        ({"content": b"a\xff"}, 400, "not a UTF-8 text"),
        ({"content": "a", "params": {"codecs": "int4"}}, 422, "codecs: there is no such parameter"),
        ({"content": "a", "params": {"codec": "int5"}}, 400, "codec 'int5' is unknown"),
        ({"content": "a", "params": {"text": "only"}}, 422, "text: Input should be 'none' or 'beside'"),
        ({"json": body(b"no message")}, 400, "not a LatentWire message"),
        ({"json": body(Wire.of(text="a").to_bytes()[:-1])}, 400, "message"),
        ({"json": body(Wire.of(text="a").to_bytes() * 2)}, 400, "messages of 2 texts"),
        ({"json": body(Wire.of(text="a", more=True))}, 400, "the stream ends inside a text"),
        ({"json": body(Wire.of(text="a", more=True).to_bytes() * 41)}, 413, "more than 40 messages"),
        ({"json": body(Wire.of(np.ones((2, 16)), text=LONG))}, 413, "a text of more than 20000 bytes"),
        ({"json": body(Wire.of(np.ones((2, 16)), text=WIDE))}, 413, "a text of more than 20000 bytes"),
        ({"json": body(Wire(Frame(text=DAMAGED)))}, 413, "a text of more than 20000 bytes"),
        ({"json": body(Wire(Frame(text=pack_text(LONG[:9000])[:-40] + bytes(40))))}, 400, "a damaged text"),
        ({"json": body(Wire.of(np.ones((2, 16)), sender=b"stranger"))}, 409, "comes from sender"),
        ({"json": body(Wire.of(np.ones((2, 8))))}, 409, "width 8; the reader expects 16, and carries no text"),
        ({"json": body(Wire.of(text="a"), receiver="c")}, 404, "receiver: 'c' is not here (there are: a, b)"),
        ({"json": body(Wire.of(text="a"), receiver=None)}, 404, "receiver: none is named (there are: a, b)"),
        ({"json": body(Wire.of(text="a"), ["?"] * 5)}, 413, "questions: 5; at most 4 are taken"),
        ({"json": body(Wire.of(text="a"), ["?" * 3001])}, 413, "questions: one of 3001 characters"),
        ({"json": body(Wire.of(text="a"), ["?" * 3000])}, 422, "window of 512"),
        ({"json": body(Wire.of(text="a"), max_new_tokens=17)}, 413, "max_new_tokens: 17; at most 16 are made"),
        ({"json": body(Wire.of(text="a"), max_new_tokens=0)}, 422, "max_new_tokens: "),
        ({"json": body(Wire.of(text="a"), temperature=1)}, 422, "temperature: Extra inputs are not permitted"),
        ({"json": body(Wire.of(text="word " * 900))}, 422, "window of 512"),
        ({"json": body(Wire.of(text="word " * 900), stream=True)}, 422, "window of 512"),
        ({"json": {"wire": "abc", "questions": ["?"]}}, 422, "wire: Incorrect padding"),
        ({"json": {"wire": f"{body(Wire.of(text='a'))['wire']}!", "questions": ["?"]}}, 422, "wire: "),
        ({"json": {"wire": body(Wire.of(text="a"))["wire"] * 2, "questions": ["?"]}}, 422, "wire: "),
        ({"json": {"wire": 7, "questions": ["?"]}}, 422, "wire: "),
        ({"json": body(Wire.of(text="a"), ["?", " "])}, 422, "questions: nothing is asked"),
        ({"json": {"wire": "", "questions": []}}, 422, "questions: "),
        ({"json": [1]}, 422, "body: "),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    client: httpx2.Client, given: dict[str, Any], status: int, reason: str
) -> None:
    reply = client.post("/v1/answer" if "json" in given else "/v1/encode", **given)
    assert reply.status_code == status, reply.text
    assert reason in reply.json()["error"] and "\n" not in reply.json()["error"]


def test_the_tokens_of_a_text_in_a_message_are_limited_where_it_is_read(ends: Ends) -> None:
    assert ends.sender is not None
    wire = ends.sender.encode(TEXTS[0], with_text=True)
    tokens = len(ends.receivers["a"].lm.tokenize_with_offsets(TEXTS[0])[0])
    for most, status in ((tokens, 200), (tokens - 1, 413)):
        with running(engine_of(ends, text_tokens=most)) as client:
            assert client.post("/v1/answer", json=body(Wire.of(text=TEXTS[0]))).status_code == status
            assert client.post("/v1/answer", json=body(Wire.of(np.ones((most, 16))))).status_code == 200
    with running(engine_of(ends, text_tokens=20)) as client:
        assert client.post("/v1/answer", json=body(wire)).json()["answers"][0]["source"] == "latents"
        reply = client.post("/v1/answer", json=body(Wire.of(text=TEXTS[0])))
        assert reply.status_code == 413 and "at most 20 are taken" in reply.json()["error"]
        reply = client.post("/v1/answer", json=body(Wire.of(np.ones((21, 16)))))
        assert reply.status_code == 413 and "wire: 21 latents; at most 20 are taken" in reply.json()["error"]


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/x-www-form-urlencoded"}])
def test_a_body_that_is_not_marked_as_json_is_told_so(client: httpx2.Client, headers: dict[str, str]) -> None:
    reply = client.post("/v1/answer", content=json.dumps(body(Wire.of(text="a"))), headers=headers)
    assert reply.status_code == 422 and reply.json()["error"] == "content-type: application/json is expected"


@pytest.mark.parametrize(
    ("content", "marked", "wrong"), [("[]", "Application/JSON", "valid dictionary"), ("", "", "Field required")]
)
def test_a_body_that_is_read_or_missing_is_not_a_matter_of_its_type(
    client: httpx2.Client, content: str, marked: str, wrong: str
) -> None:
    reply = client.post("/v1/answer", content=content, headers={"content-type": marked} if marked else {})
    error = reply.json()["error"]
    assert reply.status_code == 422 and error.startswith("body: ") and wrong in error


@pytest.mark.parametrize("given", ['"questions": ["\\ud800"]', '"questions": ["?"], "\\ud800": 1'])
def test_half_a_character_is_refused(client: httpx2.Client, given: str) -> None:
    reply = client.post("/v1/answer", content=f'{{"wire": "", {given}}}', headers={"content-type": "application/json"})
    assert (reply.status_code, list(reply.json())) == (422, ["error"])


def test_a_fault_of_the_service_is_said_like_any_other_error(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(messages: Any, questions: Any, new: int, watch: Any) -> Any:
        watch(0, 0, "Tal")
        raise ValueError("a fault")

    monkeypatch.setattr(ends.receivers["a"], "answer_batch", broken)
    with running(engine_of(ends)) as client:
        given = body(Wire.of(text="a"), ["?"])
        reply = client.post("/v1/answer", json=given)
        assert (reply.status_code, reply.json()) == (500, {"error": FAILED})
        assert events(client.post("/v1/answer", json=given | {"stream": True}))[-1] == ("error", {"error": FAILED})
        assert client.get("/health").status_code == 200


def test_a_client_that_leaves_in_the_middle_of_its_body_is_counted_as_gone(client: httpx2.Client) -> None:
    for path in ("/v1/encode", "/v1/answer"):
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
            connection.sendall(f"{head}{{".encode())
        line = f'latentwire_requests_total{{path="{path}",status="499"}} 1.0'
        until(lambda line=line: line in client.get("/metrics").text)


def test_a_token_opens_all_but_the_probes(ends: Ends) -> None:
    with running(engine_of(ends), token="sesame") as client:
        for path in ("/health", "/ready"):
            assert client.get(path).status_code == 200
        for given in (None, "Bearer sesam", "Bearer sesame1", "Basic sesame", "sesame"):
            headers = {} if given is None else {"authorization": given}
            for path in ("/metrics", "/v1/receivers", "/openapi.json", "/nothing"):
                reply = client.get(path, headers=headers)
                assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
            assert client.post("/v1/encode", content=TEXTS[0], headers=headers).status_code == 401
        client.headers["authorization"] = "bearer sesame"
        assert client.post("/v1/encode", content=TEXTS[0]).status_code == 200
        assert "sesame" not in client.get("/metrics").text


def test_a_token_may_be_of_any_letters(ends: Ends) -> None:
    with running(engine_of(ends), token="sésame") as client:
        for token, status in (("sésame", 200), ("sesame", 401)):
            headers = {"authorization": f"Bearer {token}".encode()}
            assert client.get("/v1/receivers", headers=headers).status_code == status


@pytest.mark.parametrize(("role", "missing"), [("sender", "/v1/answer"), ("receiver", "/v1/encode")])
def test_one_end_alone(ends: Ends, role: Any, missing: str) -> None:
    own = Ends(ends.sender) if role == "sender" else Ends(None, {"b": ends.receivers["b"]})
    with running(engine_of(own, role)) as client:
        assert client.post(missing, json=body(Wire.of(text="a"))).status_code == 404
        if role == "receiver":
            reply = client.post("/v1/answer", json=body(Wire.of(text=TEXTS[0]), receiver=None))
            assert reply.json()["receiver"] == "b" and client.get("/v1/receivers").json()["sender"] is None
        else:
            assert client.post("/v1/encode", content=TEXTS[0]).status_code == 200


# ---- many at once -------------------------------------------------------------------------------------------------


def test_what_waits_is_answered_together_as_it_is_alone(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ends.sender is not None
    wires = [*ends.sender.encode_batch(TEXTS), Wire.of(text=TEXTS[0])]
    alone = {name: [answers(r, wire, new=8) for wire in wires] for name, r in ends.receivers.items()}
    held = Held(ends.receivers["a"], monkeypatch)
    engine = engine_of(ends, batch=16)
    with running(engine) as client, ThreadPoolExecutor(16) as pool:

        def ask(wire: Wire, **more: Any) -> Future[httpx2.Response]:
            return pool.submit(lambda: client.post("/v1/answer", json=body(wire, max_new_tokens=8, **more)))

        first = ask(wires[0])
        assert held.begun.wait(10)
        waiting = {name: [ask(wire, receiver=name) for wire in wires] for name in ends.receivers}
        streamed = ask(wires[1], stream=True)
        wrong = ask(Wire.of(text="word " * 900))
        until(lambda: engine.batcher.waiting == 12)
        held.go.set()
        assert texts_of(first.result()) == alone["a"][0]
        for name, replies in waiting.items():
            assert [texts_of(reply.result()) for reply in replies] == alone[name]
        assert [a["answer"] for a in events(streamed.result())[-1][1]["answers"]] == alone["a"][1]
        assert wrong.result().status_code == 422
        assert held.batches == [1, 6]  # the one that is too long was refused before the other six were computed
        assert 'latentwire_batch_rows_bucket{le="8.0",task="b"} 0.0' in client.get("/metrics").text
        assert 'latentwire_batch_rows_bucket{le="16.0",task="b"} 1.0' in client.get("/metrics").text


def test_what_does_not_fit_is_refused_at_once_and_what_is_accepted_is_answered(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(ends.receivers["a"], monkeypatch)
    engine = engine_of(ends, queue=3)
    with running(engine) as client, ThreadPoolExecutor(3) as pool:
        given = body(Wire.of(text=TEXTS[0]))
        accepted = [pool.submit(lambda: client.post("/v1/answer", json=given)) for _ in range(3)]
        until(lambda: "latentwire_accepted_requests 3.0" in client.get("/metrics").text)
        for _ in range(20):
            started = time.monotonic()
            reply = client.post("/v1/answer", json=given)
            assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")
            assert "all 3 places are taken" in reply.json()["error"] and time.monotonic() - started < 2
        held.go.set()
        assert [reply.result().status_code for reply in accepted] == [200] * 3
        assert client.post("/v1/answer", json=given).status_code == 200
        assert 'requests_total{path="/v1/answer",status="429"} 20.0' in client.get("/metrics").text


def test_time_runs_out(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(ends.receivers["a"], monkeypatch)
    engine = engine_of(ends, seconds=1, queue=3, batch=1)
    with running(engine) as client, ThreadPoolExecutor(3) as pool:
        given = body(Wire.of(text=TEXTS[0]), ["?"])
        late = [pool.submit(lambda: client.post("/v1/answer", json=given)) for _ in range(3)]
        until(lambda: engine.batcher.waiting == 2)
        for reply in late:
            assert reply.result().status_code == 504
            assert reply.result().json()["error"] == "not answered within 1 seconds"
        until(lambda: engine.batcher.waiting == 0)  # the two that waited are taken out, though the first is not done
        held.go.set()
        until(lambda: client.post("/v1/answer", json=given).status_code == 200)
        assert "latentwire_accepted_requests 0.0" in client.get("/metrics").text


def test_a_stream_says_that_its_time_is_over(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(messages: Any, questions: Any, new: int, watch: Any) -> Any:
        watch(0, 0, "Tal")
        until(lambda: watch(0, 0, "Talden"))  # until nobody waits any more
        return [[]]

    monkeypatch.setattr(ends.receivers["a"], "answer_batch", slow)
    with running(engine_of(ends, seconds=0.5)) as client:
        seen = events(client.post("/v1/answer", json=body(Wire.of(text="a"), ["?"], stream=True)))
    assert seen[0] == ("delta", {"question": 0, "text": "Tal"})
    assert seen[-1] == ("error", {"error": "not answered within 0.5 seconds"})


def test_work_ends_at_its_next_token_where_nobody_waits_for_it(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def slow(messages: Any, questions: Any, new: int, watch: Any) -> Any:
        until(lambda: watch(0, 0, "Tal"))
        ended.set()
        return [[]]

    monkeypatch.setattr(ends.receivers["a"], "answer_batch", slow)
    with running(engine_of(ends, seconds=0.5)) as client:
        assert client.post("/v1/answer", json=body(Wire.of(text="a"), ["?"])).status_code == 504
        assert ended.wait(10)


def test_a_stream_that_does_not_end_by_itself_is_cut_off(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    sent = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    async def ask() -> None:
        scope = {"type": "http", "path": "/v1/answer", "headers": []}
        await asyncio.wait_for(gated(scope, None, send), 10)  # type: ignore[arg-type]

    monkeypatch.setattr(gate, "LAST_WORDS", 0.1)
    gated = gate.Gate(stuck, engine_of(ends, seconds=0.1))
    asyncio.run(ask())
    assert sent == ["http.response.start"] and gated.accepted == 0


def test_an_answer_that_begins_anew_takes_nothing_back(ends: Ends) -> None:
    """As where a batch failed and its requests are done one by one."""

    async def sent() -> list[str]:
        engine = engine_of(ends)
        answering = http.Answering(engine, Answer("a", 4), Ask([Wire.of(text="a")], ["?"]))
        answering.stop()
        pieces = [piece for text in ("Tal", "Tal", "T", "Other", "Talden") for piece in answering._deltas(0, text)]
        return [json.loads(piece.decode().split("data: ")[1])["text"] for piece in pieces]

    assert asyncio.run(sent()) == ["Tal", "den"]


def test_a_client_that_leaves_is_not_worked_for(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(ends.receivers["a"], monkeypatch)
    engine = engine_of(ends, batch=1)
    with running(engine) as client, ThreadPoolExecutor(1) as pool:
        given = body(Wire.of(text=TEXTS[0]), ["?"])
        first = pool.submit(lambda: client.post("/v1/answer", json=given))
        assert held.begun.wait(10)
        for stream in (False, True):
            with pytest.raises(httpx2.ReadTimeout):
                client.post("/v1/answer", json=given | {"stream": stream}, timeout=0.2)
        until(lambda: "latentwire_accepted_requests 1.0" in client.get("/metrics").text)
        held.go.set()
        assert first.result().status_code == 200 and held.batches == [1]
        assert client.post("/v1/answer", json=given).status_code == 200 and held.batches == [1, 1]


def test_what_nobody_waits_for_is_no_longer_awaited() -> None:
    class Gone:
        async def is_disconnected(self) -> bool:
            return True

    async def awaited() -> bool:
        waiting = asyncio.ensure_future(asyncio.Event().wait())
        with pytest.raises(HTTPException, match="the client left"):
            await http._while_there(Gone(), waiting)  # type: ignore[arg-type]
        await asyncio.sleep(0)
        return waiting.cancelled()

    assert asyncio.run(awaited())


def test_what_nobody_waits_for_is_not_done_again(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = [Ask([Wire.of(text=text)], ["?"]) for text in TEXTS[:2]]
    batches = []

    def failing(messages: Any, *more: Any) -> Any:
        batches.append(len(messages))
        if len(messages) > 1:
            asks[1].stopped = True
            raise ValueError
        return [[Reply("x", "text")]]

    monkeypatch.setattr(ends.receivers["a"], "answer_batch", failing)
    jobs = [Job(Answer("a", 4), ask, 1) for ask in asks]
    engine_of(ends).batcher._do(jobs)
    assert batches == [2, 1] and jobs[0].done.result() == [Reply("x", "text")]
    assert isinstance(jobs[1].done.exception(), LatentWireError)


# ---- loading ------------------------------------------------------------------------------------------------------


def test_it_is_ready_when_its_models_are_loaded(ends: Ends) -> None:
    go = threading.Event()

    def load() -> Ends:
        assert go.wait(10)
        return ends

    engine = Engine(load, Limits())
    with running(engine) as client:
        assert client.get("/health").status_code == 200 and client.get("/ready").status_code == 503
        reply = client.post("/v1/encode", content=TEXTS[0])
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
        go.set()
        until(lambda: client.get("/ready").status_code == 200)
        assert client.post("/v1/encode", content=TEXTS[0]).status_code == 200
    with pytest.raises(RuntimeError, match="closed"):
        engine.batcher.submit("task", "item")


def test_models_that_cannot_be_loaded_are_no_healthy_service() -> None:
    def load() -> Ends:
        raise CheckpointError("gone")

    engine = Engine(load, Limits())
    with running(engine) as client:
        until(lambda: not engine.batcher.alive)
        assert client.get("/health").status_code == client.get("/ready").status_code == 503
    with pytest.raises(CheckpointError, match="gone"):
        engine.batcher.ready.result()


# ---- batches ------------------------------------------------------------------------------------------------------


def test_batches_keep_the_order_and_their_size() -> None:
    go, done = threading.Event(), []

    def work(task: str, items: list[int]) -> list[int]:
        assert go.wait(10)
        done.append((task, items))
        if 13 in items:
            raise ValueError("13")
        return [10 * item for item in items]

    batcher = Batcher(lambda: None, work, 4)
    first = batcher.submit("x", 0)
    until(lambda: batcher.waiting == 0)
    jobs = [batcher.submit(task, item, size) for task, item, size in (
        ("x", 1, 2), ("y", 2, 9), ("x", 3, 3), ("x", 4, 2), ("z", 13, 1), ("z", 5, 1), ("x", 6, 1),
    )]  # fmt: skip
    assert jobs[6].cancel() and batcher.waiting == 6
    go.set()
    assert first.result(10) == 0 and [job.result(10) for job in jobs[:4]] == [10, 20, 30, 40]
    assert jobs[5].result(10) == 50
    with pytest.raises(ValueError, match="13"):
        jobs[4].result(10)
    assert done == [("x", [0]), ("x", [1, 4]), ("y", [2]), ("x", [3]), ("z", [13, 5]), ("z", [13]), ("z", [5])]
    batcher.close(10)
    assert not batcher.alive


def test_a_batcher_that_is_closed_waits_no_longer_than_it_is_told() -> None:
    go = threading.Event()
    batcher = Batcher(lambda: None, lambda task, items: [go.wait(10) for _ in items], 1)
    under_way = batcher.submit("x", 0)
    until(lambda: batcher.waiting == 0)
    waiting = batcher.submit("x", 1)
    batcher.close(0.1)
    assert batcher.alive and waiting.cancelled() and not under_way.done()
    go.set()
    assert under_way.result(10) is True
    batcher.close(10)
    assert not batcher.alive


def test_it_counts_what_it_made_and_read(ends: Ends) -> None:
    with running(engine_of(ends, body=20_000)) as client:
        data = client.post("/v1/encode", content=TEXTS[0]).content
        text = Wire.of(text=TEXTS[0])
        for wire, questions in ((data, ["?", "Who?"]), (text, ["?"])):
            assert client.post("/v1/answer", json=body(wire, questions)).status_code == 200
        assert client.post("/v1/answer", content="x" * 20_001).status_code == 413
        shown = client.get("/metrics").text.splitlines()
    for line in (
        f'latentwire_wire_bytes_total{{task="encode"}} {float(len(data))}',
        f'latentwire_wire_bytes_total{{task="a"}} {float(len(data) + len(text.to_bytes()))}',
        'latentwire_answers_total{receiver="a",source="latents"} 2.0',
        'latentwire_answers_total{receiver="a",source="text"} 1.0',
        'latentwire_request_seconds_count{path="/v1/answer"} 2.0',  # what is refused takes none
        'latentwire_batch_rows_sum{task="a"} 3.0',
    ):
        assert line in shown
