"""Requests to vLLM that are answered from messages: what is asked, what is refused, which slots are made."""

from __future__ import annotations

import ast
import asyncio
import base64
import io
import json
import re
import shlex
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import httpx2
import numpy as np
import pytest
import torch
from fastapi import Body, FastAPI, Request
from fastapi.responses import PlainTextResponse
from peft import PeftModel
from typer.main import get_command

from latentwire import Receiver, Sender, Wire
from latentwire.core.errors import CheckpointError, ConfigError, WireError
from latentwire.core.names import LATENT, TEXT
from latentwire.model.pretrained import save_checkpoint
from latentwire.model.system import LatentWire
from latentwire.reader.slots import SlotReader
from latentwire.serving.vllm_gate import WireGate
from latentwire.serving.vllm_requests import KEY, SALT, Admission, Client, salt_of, wire_request
from latentwire.serving.vllm_serve import serve_arguments
from latentwire.serving.vllm_slots import SlotMaker
from latentwire.wire.frame import Frame, LatentSection
from scripts import vllm_compare
from tests import ROOT
from tests.systems import saved_run, small_config, small_passages
from tests.tiny import save_tiny, tiny_model

PAGE = (ROOT / "docs" / "vllm.md").read_text()
QUESTION = "Where does Mira live?"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("vllm"))


@pytest.fixture(scope="module")
def wires(run: Path) -> list[Wire]:
    return Sender.from_pretrained(run).encode_batch([p.context for p in small_passages(3)], "int8")


@pytest.fixture(scope="module")
def client(run: Path) -> Client:
    return Client(run, "b")


def engine(**extra: Any) -> Any:
    """What LatentWire looks at of vLLM's configuration."""
    connector = SimpleNamespace(kv_connector_extra_config=extra)
    return SimpleNamespace(kv_transfer_config=connector, model_config=SimpleNamespace(max_model_len=512))


def parts(body: dict[str, Any]) -> tuple[Any, Any, Any]:
    return body["kv_transfer_params"], body["prompt"], body["cache_salt"]


def test_a_request_asks_for_the_latents_of_its_message(run: Path, client: Client, wires: list[Wire]) -> None:
    body = json.loads(json.dumps(client.body(wires[0], QUESTION, 7)))
    assert body["model"] == "b-latent" and body["max_tokens"] == 7 and body["temperature"] == 0
    assert body["repetition_penalty"] == 1 and body["ignore_eos"]  # not what the model's folder asks for
    asked = Admission.of(engine(checkpoint=str(run), receiver="b")).admit(*parts(body))
    assert asked is not None and wires[0].latents is not None
    assert np.array_equal(asked.latents, wires[0].latents)
    assert asked.positions == 1 + len(asked.latents)
    receiver = Receiver.from_pretrained(run, "b")
    assert body["prompt"][asked.positions :] == receiver.prompt.tail(QUESTION)
    assert body["stop_token_ids"] == receiver.prompt.stop
    reply = {"choices": [{"token_ids": receiver.prompt.gold("Orlin") + receiver.prompt.stop[-1:]}]}
    assert client.read(reply) == "Orlin"


def test_all_messages_of_a_longer_text_are_one_request(client: Client, wires: list[Wire]) -> None:
    latents = [wire.latents for wire in wires if wire.latents is not None]
    text = [Wire.of(z, "fp32", sender=wires[0].frame.sender, more=i < 2) for i, z in enumerate(latents)]
    asked = client.admission.admit(*parts(client.body(text, QUESTION)))
    assert asked is not None and np.array_equal(asked.latents, np.concatenate(latents))


def test_of_private_latents_a_receiver_gets_its_own(tmp_path: Path) -> None:
    models = {name: str(save_tiny("llama", tmp_path / name, i)) for i, name in enumerate("ab")}
    config = small_config(
        model={"receivers": models},
        encoder={"type": "byte", "model": models["a"], "latent_len": 8, "latent_private_len": 3},
    )
    system = LatentWire.build(config)
    save_checkpoint(tmp_path / "run" / "last", system)
    wire = Sender.from_pretrained(tmp_path / "run").encode("Mira lives in Orlin.", "fp32")
    for name, own in {"a": [0, 1, 2, 3, 4], "b": [0, 1, 5, 6, 7]}.items():
        mine = Client(tmp_path / "run", name)
        asked = mine.admission.admit(*parts(mine.body(wire, QUESTION)))
        assert asked is not None and wire.latents is not None
        assert asked.positions == 6 and np.array_equal(asked.latents, wire.latents[own])


def test_ordinary_requests_pass(client: Client) -> None:
    for params in (None, {}, {"do_remote_prefill": False}, ["?"], "?"):
        assert client.admission.admit(params, [1, 2, 3], "mine") is None
    assert client.admission.admit(None, None, None) is None


def changed(body: dict[str, Any], message: bytes, **more: Any) -> dict[str, Any]:
    tail = body["prompt"][body["prompt"].index(0, 0) + 1 :]
    return body | wire_request(message, 5, tail) | more


def refusals(body: dict[str, Any], wire: Wire) -> list[tuple[dict[str, Any], str]]:
    """Requests that must be refused, and what the reason says."""
    z, data, sender = wire.latents, wire.to_bytes(), wire.frame.sender
    assert z is not None
    return [
        (body | {"kv_transfer_params": {KEY: 7}}, "a string is needed"),
        (body | {"kv_transfer_params": {KEY: "a" * 6_000_000}}, "longer than the 3,145,728 bytes"),
        (body | {"kv_transfer_params": {KEY: "?" + base64.b64encode(data).decode()}}, "not base64"),
        (body | {"kv_transfer_params": {KEY: "ä"}}, "not base64"),
        (body | {"kv_transfer_params": {KEY: ""}}, "0 texts"),
        (changed(body, data[:-1] + bytes([data[-1] ^ 1])), "checksum"),
        (changed(body, data[:-3]), "bytes, not the"),
        (changed(body, b"GIF89a" + bytes(100)), "not a LatentWire message"),
        (changed(body, data + data), "2 texts"),
        (changed(body, Wire.of(z, "int8", sender=sender, more=True).to_bytes()), "ends inside a text"),
        (changed(body, Wire.of(z, "int8", sender=b"stranger").to_bytes()), "comes from sender"),
        (changed(body, Wire.of(z[:, 1:], "int8", sender=sender).to_bytes()), "latents of width 15"),
        (changed(body, Wire.of(text="words", sender=sender).to_bytes()), "no latents"),
        (changed(body, Wire.of(np.ones((60_000, 16)), "int4:group=64", sender=sender).to_bytes()), "the first 60001"),
        (body | {"cache_salt": None}, "needs latentwire-"),
        (body | {"cache_salt": salt_of(b"another")}, "needs latentwire-"),
        (body | {"prompt": body["prompt"][1:]}, "token ids are needed"),
        (body | {"prompt": "a text"}, "token ids are needed"),
        (body | {"prompt": None}, "token ids are needed"),
        (body | {"prompt": [0] * (len(z) + 1)}, "no question"),
        (body | {"kv_transfer_params": None}, "belongs to requests with a message"),
    ]


def test_what_cannot_be_read_is_refused_with_the_reason(client: Client, wires: list[Wire]) -> None:
    cases = refusals(client.body(wires[0], QUESTION), wires[0])
    for body, reason in cases:
        with pytest.raises(WireError, match=reason):
            client.admission.admit(*parts(body))
    assert len({reason for _, reason in cases}) > 14


def test_what_a_message_claims_takes_no_memory(client: Client, wires: list[Wire]) -> None:
    """Latents that need a codebook are decoded last, so that half a byte may stand for one until then."""
    sender = wires[0].frame.sender
    claims = [
        Frame(LatentSection(7, b"", 1024, 16, (bytes(511) + b"\1",)), None, sender, bytes(4), i < 399)
        for i in range(400)
    ]
    body = changed(client.body(wires[0], QUESTION), b"".join(Wire(frame).to_bytes() for frame in claims))
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="the first 409601 of them"):
            client.admission.admit(*parts(body))
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_the_salt_is_the_message_s_own(client: Client, wires: list[Wire]) -> None:
    salts = [client.body(wire, QUESTION)["cache_salt"] for wire in wires]
    assert len(set(salts)) == 3 and all(salt.startswith(SALT) and len(salt) <= 128 for salt in salts)
    assert not set("@/\\\0") & set("".join(salts))  # which vLLM does not take
    assert salts[0] == client.body(wires[0], "Another?")["cache_salt"]


@pytest.mark.parametrize(
    ("family", "ranked"),
    [("llama", {}), ("qwen2", {}), ("qwen3", {}), ("gemma3", {}), ("llama", {"a": 2})],
)
def test_slots_are_those_of_the_receiver(family: str, ranked: dict[str, int], tmp_path: Path) -> None:
    """To the last bit: the same reader, positions and rotation, without the model's weights."""
    model = str(save_tiny(family, tmp_path / family))
    config = small_config(
        model={"receivers": {"a": model}}, encoder={"model": model}, deep_prefix={"hidden": 8, "ranked": ranked}
    )
    system = LatentWire.build(config)
    reader = system.receivers["a"].reader
    assert isinstance(reader, SlotReader)
    if ranked:
        reader.order_heads(-torch.arange(float(reader.phases_of.numel())).view(reader.phases_of.shape).square())
    save_checkpoint(tmp_path / "run" / "last", system)
    wire = Sender.from_pretrained(tmp_path / "run").encode(small_passages(1)[0].context, "int8")
    receiver = Receiver.from_pretrained(tmp_path / "run", "a")
    with torch.no_grad():
        cache = receiver.read_message(wire).cache
    made = SlotMaker(tmp_path / "run", "a", model, torch.float32).slots(wire.latents)
    assert len(made) == len(cache.layers) == 3
    for (keys, values), layer in zip(made, cache.layers, strict=True):
        assert torch.equal(keys.transpose(0, 1), layer.keys[0]) and torch.equal(values.transpose(0, 1), layer.values[0])
    assert float(made[0][0].std()) > 0


def features_of(folder: Path, **features: bool) -> str:
    """A checkpoint of these features, none of it trained, and without LoRA."""
    model = str(save_tiny("llama", folder / "llama"))
    config = small_config(model={"receivers": {"a": model}}, encoder={"model": model}, features=features)
    save_checkpoint(folder / "run" / "last", LatentWire.build(config))
    return str(folder / "run")


@pytest.mark.parametrize(
    "features",
    [{"use_prefix": True}, {"use_latent_adapters": True}, {"use_coprocessor": True, "use_deep_prefix": False}],
)
def test_what_a_reader_alone_does_not_make_is_refused(features: dict[str, bool], tmp_path: Path) -> None:
    ckpt = features_of(tmp_path, **features)
    for call in (lambda: serve_arguments(ckpt, "a", tmp_path), lambda: Client(ckpt, "a")):
        with pytest.raises(ConfigError, match=f"features.{next(iter(features))}"):
            call()
    if not features.get("use_deep_prefix", True):
        wire = Sender.from_pretrained(ckpt).encode(small_passages(1)[0].context, "int8")
        with pytest.raises(ConfigError, match="coprocessor"):
            Receiver.from_pretrained(ckpt, "a").input_embeds(wire, QUESTION)


@pytest.mark.parametrize(
    ("extra", "reason"), [({}, "checkpoint: missing"), ({"max_bytes": "1 MiB"}, "max_bytes: '1 MiB'")]
)
def test_a_connector_is_told_enough(extra: dict[str, Any], reason: str) -> None:
    known = {"checkpoint": "runs/none", "receiver": "b"} if extra else {}
    with pytest.raises(ConfigError, match=reason):
        Admission.of(engine(**known, **extra))


def test_vectors_at_the_input_are_what_the_receiver_reads(tmp_path: Path) -> None:
    ckpt = features_of(tmp_path, use_deep_prefix=False)
    wire = Sender.from_pretrained(ckpt).encode(small_passages(1)[0].context, "int8")
    receiver = Receiver.from_pretrained(ckpt, "a")
    given = receiver.input_embeds(wire, QUESTION)
    out = receiver.lm.model.generate(
        inputs_embeds=given[None], attention_mask=torch.ones(1, len(given)), max_new_tokens=8, do_sample=False
    )
    assert receiver.prompt.read(out[0].tolist()) == receiver.answer(wire, QUESTION, 8).text
    assert "--enable-prompt-embeds" in serve_arguments(ckpt, "a", tmp_path)
    client = Client(ckpt, "a")
    with pytest.raises(ConfigError, match="prompt_embeds"):
        client.body(wire, QUESTION)
    file = io.BytesIO(base64.b64decode(client.embeds_body(given)["prompt_embeds"]))
    assert torch.equal(torch.load(file, weights_only=True), given)


def test_slots_are_not_vectors_at_the_input(run: Path, wires: list[Wire]) -> None:
    with pytest.raises(ConfigError, match="use_deep_prefix"):
        Receiver.from_pretrained(run, "b").input_embeds(wires[0], QUESTION)


# ---- the gate ----------------------------------------------------------------------------------------------------


class NeedsKey:
    """Middleware that asks for a key, as vLLM's does with --api-key."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        known = scope["type"] != "http" or b"key" in dict(scope["headers"])
        await (self.app if known else PlainTextResponse("who?", 401))(scope, receive, send)


def posted(run: Path, bodies: list[Any], **headers: str) -> tuple[list[httpx2.Response], list[bytes]]:
    """Responses of a service behind the gate, put together as vLLM does, and the bodies that reached it."""
    reached = []
    app = FastAPI()
    app.state.vllm_config = engine(checkpoint=str(run), receiver="b")
    app.add_middleware(NeedsKey)
    app.add_middleware(WireGate)

    @app.post("/v1/completions")
    async def complete(request: Request, body: Annotated[Any, Body()]) -> None:
        reached.append(await request.body())

    async def pieces(body: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1 << 16):
            yield body[start : start + (1 << 16)]

    async def ask() -> list[httpx2.Response]:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://gate") as http:
            raw = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
            return [await http.post("/v1/completions", content=pieces(body), headers=headers) for body in raw]

    return asyncio.run(ask()), reached


def test_the_gate_says_why_and_lets_the_rest_through_unchanged(run: Path, client: Client, wires: list[Wire]) -> None:
    body = client.body(wires[0], QUESTION)
    long = body | {"prompt": [0] * 600}  # vLLM refuses it, before any latents are made for it
    fine = [b"no json, latentwire", b"[" * 100_000 + b"latentwire", b'["latentwire"]', b"{}"]
    fine += [json.dumps(given).encode() for given in (body, body | {"echo": False}, long)]
    answers, reached = posted(run, fine, key="mine")
    assert reached == fine and {answer.status_code for answer in answers} == {200}
    bad = [
        *refusals(body, wires[0]),
        (body | {"echo": True}, "echo"),
        (body | {"prompt_logprobs": 0}, "prompt_logprobs"),
        (body | {"use_beam_search": True}, "use_beam_search"),
    ]
    answers, reached = posted(run, [given for given, _ in bad], key="mine")
    assert not reached
    for answer, (_, reason) in zip(answers, bad, strict=True):
        assert answer.status_code == 400 and reason in answer.json()["detail"], reason


def test_the_gate_reads_nothing_of_who_has_no_key(
    run: Path, client: Client, wires: list[Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WireGate, "_why_not", lambda *given: pytest.fail("a body was looked at"))
    answers, reached = posted(run, [body for body, _ in refusals(client.body(wires[0], QUESTION), wires[0])])
    assert not reached and {answer.status_code for answer in answers} == {401}


# ---- what a server is started with -------------------------------------------------------------------------------


def test_a_name_that_is_cut_short_means_the_same_everywhere(tmp_path: Path) -> None:
    model = str(save_tiny("llama", tmp_path / "llama"))
    config = small_config(
        model={"receivers": {"tiny-llama": model}},
        encoder={"model": model},
        features={"use_lora": True},
        deep_prefix={"ranked": {"tiny-llama": 2}},
    )
    system = LatentWire.build(config)
    for name in (LATENT, TEXT):
        system.receivers["tiny-llama"].add_adapter(name)
    save_checkpoint(tmp_path / "run", system)
    short, whole = (Client(tmp_path / "run", name) for name in ("tiny", "tiny-llama"))
    assert short.wire_model == whole.wire_model == "tiny-llama-latent" and short.text_model == whole.text_model
    given = [serve_arguments(tmp_path / "run", name, tmp_path) for name in ("tiny", "tiny-llama")]
    assert given[0] == given[1]
    makers = [SlotMaker(tmp_path / "run", name, model, torch.float32) for name in ("tiny", "tiny-llama")]
    assert makers[0].reader.ranked and makers[1].reader.ranked


def test_lora_is_exported_as_peft_reads_it(run: Path, tmp_path: Path) -> None:
    arguments = serve_arguments(run, "a", tmp_path)
    modules = dict(word.split("=", 1) for word in arguments[arguments.index("--lora-modules") + 1 :])
    assert list(modules) == ["a-latent", "a-text"]
    assert arguments[arguments.index("--max-lora-rank") + 1] == "8"  # the least that holds 4
    receiver = Receiver.from_pretrained(run, "a")
    ids = torch.tensor([[3, 9, 27, 81]])
    for name, adapter in zip(modules.values(), ("latent", "text"), strict=True):
        with torch.no_grad(), receiver.using(adapter):
            expected = receiver.lm.model(input_ids=ids).logits
        with torch.no_grad():
            found = PeftModel.from_pretrained(tiny_model("llama"), name)(input_ids=ids).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad(), receiver.using(None):
        assert (receiver.lm.model(input_ids=ids).logits - expected).abs().max() > 0.1
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert serve_arguments(run, "a", tmp_path) == arguments
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written  # once
    assert LATENT in receiver.adapters


def test_text_is_asked_of_the_bare_model_where_there_is_no_lora_for_it(tmp_path: Path) -> None:
    """As with a frozen receiver that was added to one with LoRA."""
    ckpt = features_of(tmp_path, use_lora=True)
    assert Client(ckpt, "a").text_model == "a"
    assert "--enable-lora" not in serve_arguments(ckpt, "a", tmp_path)


def test_a_server_is_told_where_its_messages_are_read(run: Path, tmp_path: Path) -> None:
    arguments = serve_arguments(run, "b", tmp_path)
    assert arguments[:4] == ["--model", str(run.parent / "gemma3"), "--served-model-name", "b"]
    given = json.loads(arguments[arguments.index("--kv-transfer-config") + 1])
    module, name = arguments[arguments.index("--middleware") + 1].rsplit(".", 1)
    assert given["kv_connector_extra_config"] == {"checkpoint": str((run / "last").resolve()), "receiver": "b"}
    assert name == WireGate.__name__ and module == WireGate.__module__
    assert arguments[arguments.index("--max-model-len") + 1] == "512"
    assert arguments[arguments.index("--dtype") + 1] == "float32"
    with pytest.raises(CheckpointError, match="it has: a, b"):
        serve_arguments(run, "c", tmp_path)


def test_an_unknown_receiver_ends_in_one_line(run: Path) -> None:
    command = [sys.executable, "-m", "latentwire.serving.vllm_serve", "--ckpt", str(run), "--receiver", "c"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


# ---- docs/vllm.md ------------------------------------------------------------------------------------------------


def test_the_page_s_python_asks_what_a_server_admits(
    run: Path, client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/completions"
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"token_ids": client.prompt.gold("1871")}]}).encode())

        def log_message(self, *words: Any) -> None:
            pass

    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    code = code.replace("checkpoints/default", str(run)).replace("smollm2-135m", "b")
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setenv("URL", f"http://127.0.0.1:{server.server_port}")
        exec(compile(code, "docs/vllm.md", "exec"), {})
        thread.join()
    assert capsys.readouterr().out == "1871\n"
    assert client.admission.admit(*parts(asked[0])) is not None and asked[0]["model"] == "b-latent"


def test_the_page_s_commands_can_be_given(run: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    serve, compare, by_hand = (shlex.split(block.replace("\\\n", "")) for block in blocks)
    assert serve[0] == "bash" and (ROOT / serve[1]).is_file() and serve[2:6:2] == ["--ckpt", "--receiver"]
    assert compare[:2] == ["python", "scripts/vllm_compare.py"]
    given = get_command(vllm_compare.app).make_context("compare", compare[2:]).params
    assert given["questions"] == 50 and given["receiver"] == "smollm2-135m"
    connector = json.loads(by_hand[by_hand.index("--kv-transfer-config") + 1])
    arguments = serve_arguments(run, "a", run.parent / "lora")
    ours = json.loads(arguments[arguments.index("--kv-transfer-config") + 1])
    assert {**connector, "kv_connector_extra_config": 0} == {**ours, "kv_connector_extra_config": 0}
    assert connector["kv_connector_extra_config"].keys() == ours["kv_connector_extra_config"].keys()
    module = ast.parse((ROOT / f"{connector['kv_connector_module_path'].replace('.', '/')}.py").read_text())
    assert connector["kv_connector"] in {node.name for node in module.body if isinstance(node, ast.ClassDef)}


def test_a_comparison_takes_other_values_of_the_configuration(run: Path) -> None:
    words = ["http://127.0.0.1:1", "--ckpt", str(run), "--receiver", "b", "--questions", "1"]
    with pytest.raises(SystemExit, match=r"error: .*model\.dtype"):
        vllm_compare.app([*words, "--override", "model.dtype=float63"], standalone_mode=False)


def test_a_comparison_counts_what_is_equal(
    run: Path, client: Client, wires: list[Wire], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a service that answers every second question rightly."""
    passages = small_passages(3)
    _, asked, seconds = vllm_compare.prepare(str(run), "b", passages, 5)
    assert len(asked) == 6 and seconds > 0
    right = {json.dumps(item.from_message["prompt"]) + item.from_message["cache_salt"]: item.expected for item in asked}

    def post(service: Any, body: dict[str, Any]) -> dict[str, Any]:
        known = right.get(json.dumps(body["prompt"]) + body.get("cache_salt", ""), [])
        ids = known if "Where" in client.tokenizer.decode(body["prompt"]) else [*known, 5, 5]
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(ids)}
        return {"choices": [{"token_ids": [*ids, client.prompt.stop[0]]}], "usage": usage}

    monkeypatch.setattr(vllm_compare.Service, "post", post)
    result = vllm_compare.compare("http://127.0.0.1:1", client, asked, 2)
    assert (result["questions"], result["equal"], len(result["unequal"])) == (6, 3, 3)
    assert {item["question"] for item in result["unequal"]} == {"How many lamps?"}
    assert result["text"]["positions"] > result["messages"]["positions"] > 0
