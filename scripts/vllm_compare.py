"""Ask a running `scripts/vllm_serve.sh` what the local receiver is asked, and say whether the answers are equal.

Each passage is encoded once; every question is answered from its message by the receiver here, one by one, and then by
vLLM, all at once; then by vLLM from the text itself. Answers are compared token by token. docs/vllm.md shows how to
read the figures.

    python scripts/vllm_compare.py http://127.0.0.1:8000 --ckpt checkpoints/default --receiver smollm2-135m \
        --data_path squad_dev.json --questions 50
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import httpx2
import torch
import typer

from latentwire import Receiver, Sender, Wire
from latentwire.backbone.padding import pad_left
from latentwire.cli.run import as_program
from latentwire.config.load import parse_overrides
from latentwire.config.sections.inputs import DataConfig
from latentwire.core.errors import LatentWireError
from latentwire.core.metrics import f1_score
from latentwire.core.names import LATENT
from latentwire.data import load_passages
from latentwire.data.example import Passage, Question
from latentwire.serving.vllm_requests import Client


@dataclass
class Asked:
    """One question: its body for vLLM, and what the receiver here answers."""

    question: Question
    from_message: dict[str, Any]
    from_text: dict[str, Any]
    expected: list[int]


def prepare(
    ckpt: str, name: str, passages: list[Passage], new: int, changes: Mapping[str, Any] | None = None
) -> tuple[Client, list[Asked], float]:
    """Every question, asked here, and the seconds that took. changes: as in `Receiver.from_pretrained`."""
    sender = Sender.from_pretrained(ckpt, changes)
    wires = [sender.encode(passage.context) for passage in passages]
    del sender
    client, receiver = Client(ckpt, name), Receiver.from_pretrained(ckpt, name, changes)
    asked, seconds = [], 0.0
    for passage, wire in zip(passages, wires, strict=True):
        for question in passage.questions:
            started = time.perf_counter()
            expected = answer_here(receiver, wire, question.text, new)
            seconds += time.perf_counter() - started
            if client.served.slots:
                body = client.body(wire, question.text, new)
            else:
                body = client.embeds_body(receiver.input_embeds(wire, question.text), new)
            asked.append(Asked(question, body, client.text_body(passage.context, question.text, new), expected))
    return client, asked, seconds


@torch.no_grad()
def answer_here(receiver: Receiver, wire: Wire, question: str, new: int) -> list[int]:
    """The receiver's greedy answer, as tokens."""
    with receiver.using(LATENT):
        context = receiver.read_message(wire)
        ids, mask = pad_left([receiver.prompt.tail(question)], receiver.lm.pad_id, receiver.lm.device)
        out = receiver.lm.generate(context, ids, mask, new, receiver.prompt.stop)
    return until(out[0].tolist(), receiver.prompt.stop)


def until(ids: list[int], stop: Sequence[int]) -> list[int]:
    """New tokens before the one that ended the answer."""
    return ids[: next((i for i, token in enumerate(ids) if token in stop), len(ids))]


class Service:
    """A running `vllm serve`."""

    def __init__(self, url: str, clients: int):
        self.http = httpx2.Client(base_url=url, timeout=600, limits=httpx2.Limits(max_connections=clients))
        self.clients = clients

    def post(self, body: dict[str, Any]) -> dict[str, Any]:
        reply = self.http.post("/v1/completions", json=body)
        if reply.status_code != 200:
            raise LatentWireError(f"{reply.status_code}: {reply.text}")
        answer: dict[str, Any] = reply.json()
        return answer

    def timed(self, bodies: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], float]:
        """All replies, so many asked at once, and the seconds until the last."""
        started = time.perf_counter()
        with ThreadPoolExecutor(self.clients) as pool:
            replies = list(pool.map(self.post, bodies))
        return replies, time.perf_counter() - started


def row(client: Client, asked: list[Asked], replies: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Throughput and quality of one way of asking."""
    scores = [f1_score(client.read(reply), item.question.answers) for item, reply in zip(asked, replies, strict=True)]
    used = [reply["usage"] for reply in replies]
    return {
        "seconds": round(seconds, 2),
        "answers_per_s": round(len(asked) / seconds, 2),
        "positions": round(sum(u["prompt_tokens"] for u in used) / len(used), 1),
        "new_tokens": sum(u["completion_tokens"] for u in used),
        "f1": round(sum(scores) / len(scores), 4),
    }


def compare(url: str, client: Client, asked: list[Asked], clients: int) -> dict[str, Any]:
    """Equality with the answers given here, and the throughput of messages beside text on the same engine."""
    service = Service(url, clients)
    for body in (asked[-1].from_message, asked[-1].from_text):  # both kinds once, before anything is timed
        service.post(body | {"max_tokens": 2})
    replies, seconds = service.timed([item.from_message for item in asked])
    texts, text_seconds = service.timed([item.from_text for item in asked])
    stop = client.prompt.stop
    unequal = []
    for number, (item, reply) in enumerate(zip(asked, replies, strict=True)):
        found = until(reply["choices"][0]["token_ids"], stop)
        if found != item.expected:
            said = {"vllm": client.prompt.read(found), "here": client.prompt.read(item.expected)}
            unequal.append({"number": number, "question": item.question.text} | said)
    return {
        "questions": len(asked),
        "equal": len(asked) - len(unequal),
        "unequal": unequal,
        "messages": row(client, asked, replies, seconds),
        "text": row(client, asked, texts, text_seconds),
        "times_as_fast": round(text_seconds / seconds, 2),
    }


def main(
    url: str,
    ckpt: Annotated[str, typer.Option(help="Checkpoint or run.")],
    receiver: Annotated[str, typer.Option(help="The receiver that is served.")],
    data_path: Annotated[
        str | None, typer.Option("--data_path", help="Questions in SQuAD's format; invented facts without it.")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Number of questions.")] = 50,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", min=1, help="Longest answer.")] = 24,
    clients: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 16,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--override", metavar="KEY=VALUE", help="Change a key of the configuration used here."),
    ] = None,
) -> None:
    """Print as JSON what a running vLLM answers, beside the receiver here."""
    data = DataConfig(dataset="squad" if data_path else "facts", eval_path=data_path)
    try:
        passages = load_passages(data, "validation", questions)
        changes = parse_overrides(overrides)
        client, asked, seconds = prepare(ckpt, receiver, passages, max_new_tokens, changes)
        result = compare(url, client, asked, clients)
        here = {"seconds": round(seconds, 2), "answers_per_s": round(len(asked) / seconds, 2)}
        print(json.dumps(result | {"here_one_by_one": here}, indent=2, ensure_ascii=False))
    except (LatentWireError, httpx2.HTTPError) as error:
        raise SystemExit(f"error: {error}") from None


app = as_program(main)


if __name__ == "__main__":
    app()
