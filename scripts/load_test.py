"""Load a running service and say what became of every request. docs/serving.md tells how to read it.

Answers are first fetched one by one, with nothing else going on: whatever comes under load must equal them. Then
`--clients` ask one question after the other, which gives the throughput that the service holds, and then questions
arrive evenly at `--factor` times that rate, whether or not the earlier ones are answered.

    python scripts/load_test.py http://127.0.0.1:8000 story.lw --question "Who is the keeper?" --receiver gemma3-270m
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer

from latentwire.cli.run import as_program
from latentwire.core.errors import LatentWireError
from latentwire.wire.message import read_texts


@dataclass
class Phase:
    """What came of the requests of one phase."""

    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    answered: list[float] = field(default_factory=list)  # latencies of status 200, seconds
    refused: list[float] = field(default_factory=list)  # of 429 and 503
    wrong: int = 0

    @property
    def lost(self) -> int:
        """Requests that were neither answered nor refused."""
        return sum(self.statuses.values()) - len(self.answered) - len(self.refused)

    def row(self) -> dict[str, Any]:
        sent = sum(self.statuses.values())
        return {
            "seconds": round(self.seconds, 2),
            "sent": sent,
            "sent_per_s": round(sent / self.seconds, 1),
            "answered_per_s": round(len(self.answered) / self.seconds, 1),
            "p50_s": _percentile(self.answered, 0.5),
            "p99_s": _percentile(self.answered, 0.99),
            "refused_p99_s": _percentile(self.refused, 0.99),
            "statuses": dict(sorted(self.statuses.items())),
            "wrong": self.wrong,
        }


class Load:
    """Sends requests and keeps count."""

    def __init__(self, client: httpx2.AsyncClient, bodies: list[bytes]):
        self.client, self.bodies = client, bodies
        self.expected: list[Any] = []

    async def learn(self) -> None:
        """The right answers, one by one; LatentWireError where the service gives none."""
        for body in self.bodies:
            reply = await self.client.post("/v1/answer", content=body)
            if reply.status_code != 200:
                raise LatentWireError(f"{reply.status_code}: {reply.text}")
            self.expected.append(reply.json())

    async def ask(self, number: int, phase: Phase) -> None:
        started = time.perf_counter()
        try:
            reply = await self.client.post("/v1/answer", content=self.bodies[number])
        except httpx2.HTTPError as error:
            phase.statuses[f"lost: {type(error).__name__}"] += 1
            return
        phase.statuses[str(reply.status_code)] += 1
        if reply.status_code == 200:
            phase.answered.append(time.perf_counter() - started)
            phase.wrong += reply.json() != self.expected[number]
        elif reply.status_code in (429, 503):
            phase.refused.append(time.perf_counter() - started)

    async def held(self, clients: int, seconds: float) -> Phase:
        """So many clients, each with one request at a time."""
        phase, turns = Phase(), self._turns()
        started = time.perf_counter()

        async def one() -> None:
            while time.perf_counter() < started + seconds:
                await self.ask(next(turns), phase)

        await asyncio.gather(*(one() for _ in range(clients)))
        phase.seconds = time.perf_counter() - started
        return phase

    async def arriving(self, rate: float, seconds: float) -> Phase:
        """Requests at a fixed rate, whatever becomes of them."""
        phase, turns = Phase(), self._turns()
        started = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(math.ceil(rate * seconds)):
                if (ahead := started + number / rate - time.perf_counter()) > 0:
                    await asyncio.sleep(ahead)
                tasks.create_task(self.ask(next(turns), phase))
        phase.seconds = time.perf_counter() - started
        return phase

    def _turns(self) -> Iterator[int]:
        return itertools.cycle(range(len(self.bodies)))


async def measure(
    url: str, bodies: list[bytes], clients: int, seconds: float, factor: float, token: str | None = None
) -> dict[str, Any]:
    """Both phases, and what the service itself counted as answered in the second one."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx2.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=120) as client:
        load = Load(client, bodies)
        await load.learn()
        held = await load.held(clients, seconds)
        rate = factor * len(held.answered) / held.seconds
        before = await _answered(client)
        over = await load.arriving(rate, seconds)
        counted = await _answered(client) - before
        return {
            "held": held.row(),
            "over": over.row() | {"asked_per_s": round(rate, 1), "counted_by_service": counted},
            "lost": held.lost + over.lost,
            "not_received": counted - len(over.answered),
        }


async def _answered(client: httpx2.AsyncClient) -> int:
    """How many requests for answers the service has answered with status 200 so far."""
    text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if 'path="/v1/answer"' in line and 'status="200"' in line]
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("latentwire_requests_total")))


def _percentile(values: list[float], share: float) -> float | None:
    if not values:
        return None
    return round(sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)], 4)


def request_bodies(file: Path, questions: list[str], receiver: str | None, max_new_tokens: int) -> list[bytes]:
    """A body for each text in a file of messages and each question."""
    with open(file, "rb") as stream:
        texts = [b"".join(wire.to_bytes() for wire in wires) for wires in read_texts(stream)]
    return [
        json.dumps(
            {
                "wire": base64.b64encode(text).decode(),
                "questions": [question],
                "receiver": receiver,
                "max_new_tokens": max_new_tokens,
            }
        ).encode()
        for text in texts
        for question in questions
    ]


def main(
    url: str,
    messages: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    questions: Annotated[list[str], typer.Option("--question", help="Question; may be given several times.")],
    receiver: Annotated[str | None, typer.Option(help="Receiver; may be left out where the service has one.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", min=1, help="Longest answer.")] = 24,
    clients: Annotated[int, typer.Option(min=1, help="Clients of the first phase.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of each phase.")] = 20.0,
    factor: Annotated[float, typer.Option(min=1.0, help="Second phase: so many times what was held.")] = 10.0,
) -> None:
    """Load a running service and print what became of every request as JSON.

    A bearer token is taken from LATENTWIRE_TOKEN.
    """
    try:
        bodies = request_bodies(messages, questions, receiver, max_new_tokens)
        token = os.environ.get("LATENTWIRE_TOKEN")
        print(json.dumps(asyncio.run(measure(url, bodies, clients, seconds, factor, token)), indent=2))
    except (LatentWireError, httpx2.HTTPError) as error:
        raise SystemExit(f"error: {error}") from None


app = as_program(main)


if __name__ == "__main__":
    app()
