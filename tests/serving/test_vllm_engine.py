"""vLLM really run: a server on a tiny model answers from messages as the local receiver does, to the last token.

It needs the environment that `bash scripts/vllm_serve.sh --install` makes, or LATENTWIRE_VLLM, the Python of another.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from latentwire import Receiver, Sender, Wire
from latentwire.backbone.context import Context
from latentwire.backbone.padding import pad_left
from latentwire.core.names import LATENT, TEXT
from latentwire.model.pretrained import save_checkpoint
from latentwire.model.system import LatentWire
from latentwire.serving.vllm_requests import PLACEHOLDER, Client
from tests import ROOT
from tests.serving.test_vllm import refusals
from tests.systems import small_config, small_passages
from tests.tiny import save_tiny

PYTHON = Path(os.environ.get("LATENTWIRE_VLLM") or ROOT / ".venv-vllm" / "bin" / "python")
SIZES = {"hidden_size": 64, "num_key_value_heads": 2, "head_dim": 32}  # vLLM's attention takes no smaller heads
QUESTIONS = ["Where does Mira live?", "How many lamps?", "Who sells lamps on the hill near the river?"]
BLOCKS = 24

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.is_file(), reason="no vLLM here: bash scripts/vllm_serve.sh --install"),
]


@dataclass
class Served:
    """A server on a receiver, the receiver itself, and messages whose latents are as many."""

    http: httpx2.Client
    client: Client
    receiver: Receiver
    texts: list[str]
    wires: list[Wire]

    def ask(self, body: dict[str, Any] | bytes) -> httpx2.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post("/v1/completions", content=content, headers={"content-type": "application/json"})

    def ids(self, body: dict[str, Any]) -> list[int]:
        """The new tokens, up to what ends an answer."""
        reply = self.ask(body)
        assert reply.status_code == 200, reply.text
        return cut(reply.json()["choices"][0]["token_ids"], body.get("stop_token_ids", []))

    def all_ids(self, bodies: Sequence[dict[str, Any]]) -> list[list[int]]:
        """The same for many at once."""
        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(self.ids, bodies))

    def metric(self, name: str) -> float:
        return sum(map(float, re.findall(rf"^{name}\S* (\S+)$", self.http.get("/metrics").text, re.MULTILINE)))

    # ---- the same, here ----

    def here(self, context: Context, tail: list[int], new: int, stop: list[int]) -> list[int]:
        ids, mask = pad_left([tail], self.receiver.lm.pad_id)
        return cut(self.receiver.lm.generate(context, ids, mask, new, stop)[0].tolist(), stop)

    def from_wire(self, wire: Wire, question: str, new: int = 24, stop: list[int] | None = None) -> list[int]:
        stop = self.receiver.prompt.stop if stop is None else stop
        with torch.no_grad(), self.receiver.using(LATENT):
            return self.here(self.receiver.read_message(wire), self.receiver.prompt.tail(question), new, stop)

    def from_placeholders(self, prompt: list[int]) -> list[int]:
        """What a message's prompt says without the message: a row of the same token, then the question."""
        head = prompt.count(PLACEHOLDER)
        assert prompt[:head] == [PLACEHOLDER] * head
        with torch.no_grad(), self.receiver.using(LATENT):
            context = self.receiver.read_text([[PLACEHOLDER] * head])
            return self.here(context, prompt[head:], 24, self.receiver.prompt.stop)

    def from_text(self, text: str, question: str, adapter: str | None = TEXT) -> list[int]:
        prompt = self.receiver.prompt
        row = prompt.head + self.receiver.lm.tokenize_with_offsets(text)[0]
        with torch.no_grad(), self.receiver.using(adapter):
            return self.here(self.receiver.read_text([row]), prompt.tail(question), 24, prompt.stop)


def cut(ids: list[int], stop: Sequence[int]) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in stop), len(ids))]


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("engine")
    sliding = {"sliding_window": 16, "query_pre_attn_scalar": 32} if request.param == "gemma3" else {}
    model = str(save_tiny(request.param, folder / "model", **SIZES, **sliding))
    sender = str(save_tiny("llama", folder / "sender"))
    config = small_config(
        model={"receivers": {"a": model}}, encoder={"model": sender}, features={"use_lora": True}, lora={"r": 8}
    )
    system = LatentWire.build(config)
    for name in (LATENT, TEXT):
        for parameter in system.receivers["a"].add_adapter(name).trainable_parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    ckpt = folder / "run" / "last"
    save_checkpoint(ckpt, system)
    words = [p.context for p in small_passages(6)]
    texts = [" ".join(words[i:] + words[:i]) for i in range(6)]
    wires = Sender.from_pretrained(ckpt).encode_batch(texts, "int8")
    with server(ckpt, folder) as http:
        yield Served(http, Client(ckpt, "a"), Receiver.from_pretrained(ckpt, "a"), texts, wires)


@contextmanager
def server(ckpt: Path, folder: Path) -> Iterator[httpx2.Client]:
    """vLLM on a receiver, once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = {"--ckpt": ckpt, "--receiver": "a", "--port": port, "--num-gpu-blocks-override": BLOCKS}
    flags = [str(word) for pair in words.items() for word in pair]
    command = [str(PYTHON), "-m", "latentwire.serving.vllm_serve", *flags, "--enforce-eager"]
    environment = os.environ | {
        "LATENTWIRE_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "",  # three processes import vLLM, which takes most of a minute uncompiled
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    log, until = folder / "vllm.log", time.monotonic() + 300
    with (
        open(log, "wb") as file,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as http,
    ):
        try:
            while not healthy(http):
                assert process.poll() is None and time.monotonic() < until, log.read_text()[-4000:]
                time.sleep(0.5)
            yield http
        finally:
            process.terminate()  # it ends its other processes
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def healthy(http: httpx2.Client) -> bool:
    try:
        return http.get("/health").status_code == 200
    except httpx2.HTTPError:
        return False


def test_answers_are_the_local_receiver_s_beside_ordinary_requests(served: Served) -> None:
    asked = [(i, question) for i in range(6) for question in QUESTIONS[:2]]
    bodies, expected = [], []
    for i, question in asked:
        bodies += [served.client.body(served.wires[i], question), served.client.text_body(served.texts[i], question)]
        expected += [served.from_wire(served.wires[i], question), served.from_text(served.texts[i], question)]
    bodies.append(served.client.text_body(served.texts[0], QUESTIONS[0]) | {"model": "a"})  # without LoRA
    expected.append(served.from_text(served.texts[0], QUESTIONS[0], None))
    assert served.all_ids(bodies) == expected
    assert len({tuple(ids) for ids in expected}) > len(expected) // 2  # they tell texts and questions apart
    assert expected[-1] != expected[1]
    reply = served.client.read(served.ask(bodies[0]).json())
    assert reply == served.receiver.answer(served.wires[0], QUESTIONS[0]).text


def test_no_request_reads_another_s_message(served: Served) -> None:
    """Prompts are the same but for the message, longer than a block of the prefix cache, and asked again and again."""
    asked = [(served.client.body(wire, q), served.from_wire(wire, q)) for q in QUESTIONS for wire in served.wires]
    (one, first), (other, second), words = next(
        (a, b, words)
        for a, b in combinations(asked, 2)
        if a[0]["prompt"] == b[0]["prompt"] and a[1] != b[1]
        if (words := served.from_placeholders(a[0]["prompt"])) not in (a[1], b[1])
    )
    bodies, expected = [one, other], [first, second]
    assert len(one["prompt"]) > 64
    before = served.metric("vllm:prefix_cache_hits_total")
    for _ in range(2):
        assert served.all_ids([*bodies, *bodies[::-1]]) == [*expected, *expected[::-1]]
    assert served.metric("vllm:prefix_cache_hits_total") > before
    # The same tokens without a message are what they say.
    plain = {key: value for key, value in bodies[0].items() if key not in ("kv_transfer_params", "cache_salt")}
    assert served.all_ids([plain, plain | {"cache_salt": "mine"}, plain]) == [words] * 3
    assert served.all_ids(bodies) == expected  # and they have left nothing behind for the messages
    assert served.ask(plain | {"cache_salt": bodies[0]["cache_salt"]}).status_code == 400


def test_what_cannot_be_read_ends_its_own_request_alone(served: Served) -> None:
    """The gate says why. The engine, reached by a key that the gate does not see, lets none of it through either."""
    body = served.client.body(served.wires[0], QUESTIONS[0])
    expected = served.from_wire(served.wires[0], QUESTIONS[0])
    bad = refusals(body, served.wires[0])
    hidden = [json.dumps(given).replace("latentwire", "latentwir\\u0065").encode() for given, _ in bad]
    for more in ({"prompt_logprobs": 1}, {"use_beam_search": True, "n": 2}):
        hidden.append(json.dumps(body | more).replace("latentwire", "latentwir\\u0065").encode())
    assert b"latentwire" not in b"".join(hidden)
    with ThreadPoolExecutor(8) as pool:
        refused = pool.map(served.ask, [given for given, _ in bad])
        failed = pool.map(served.ask, hidden)
        fine = pool.map(served.ids, [body] * 6)
        for answer, (_, reason) in zip(refused, bad, strict=True):
            assert answer.status_code == 400 and reason in answer.json()["error"]["message"]
        assert {answer.status_code for answer in failed} <= {400, 500}
        assert list(fine) == [expected] * 6
    seen = served.ask(json.dumps(body).replace("latentwire", "latentwir\\u0065").encode())  # what is right is answered
    assert cut(seen.json()["choices"][0]["token_ids"], body["stop_token_ids"]) == expected
    assert served.http.get("/health").status_code == 200


def test_after_a_preemption_the_message_is_read_again(served: Served) -> None:
    """More and longer answers at once than the cache holds."""
    before = served.metric("vllm:num_preemptions_total")
    more = {"max_tokens": 110, "stop_token_ids": [], "ignore_eos": True}
    bodies = [served.client.body(wire, QUESTIONS[1]) | more for wire in served.wires]
    assert served.all_ids(bodies) == [served.from_wire(wire, QUESTIONS[1], 110, []) for wire in served.wires]
    assert served.metric("vllm:num_preemptions_total") > before
