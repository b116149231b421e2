"""`latentwire serve`: sender and receivers over HTTP."""

from __future__ import annotations

import copy
import os
import signal
import socket
import sys
from concurrent.futures import Future
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

import typer

from latentwire.cli.extras import extras
from latentwire.cli.options import (
    DEFAULT_CHECKPOINT,
    LENGTH,
    Checkpoint,
    MaxNewTokens,
    OnlyReceivers,
    Overrides,
    changes_of,
    names_of,
)
from latentwire.core.errors import DataError, LatentWireError
from latentwire.core.unicode import reading

TOKEN = "LATENTWIRE_TOKEN"


def serve(
    ckpt: Checkpoint = DEFAULT_CHECKPOINT,
    role: Annotated[
        Literal["sender", "receiver", "both"],
        typer.Option(help="Which ends of the wire are here; only they are loaded."),
    ] = "both",
    receiver: OnlyReceivers = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option("--token_file", metavar="FILE", help=f"Bearer token that requests must carry; or set {TOKEN}."),
    ] = None,
    queue: Annotated[int, typer.Option(min=1, help="Requests accepted and not answered yet; more are refused.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Texts or questions done together; most questions a request.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Time for a request, wait included.")] = 60,
    grace: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Time to finish when stopped. Default: --timeout.")
    ] = None,
    max_body: Annotated[int, typer.Option("--max_body", min=1, metavar="BYTES", help="Longest body.")] = 4 << 20,
    max_text_tokens: Annotated[int, typer.Option("--max_text_tokens", min=1, help="Longest text.")] = 8192,
    max_question: Annotated[
        int, typer.Option("--max_question", min=1, metavar="CHARACTERS", help="Longest question.")
    ] = 1000,
    max_new_tokens: MaxNewTokens = 64,
    access_log: Annotated[bool, typer.Option("--access_log", help="Log a line for every request.")] = False,
    overrides: Overrides = None,
) -> None:
    """Serve a checkpoint over HTTP: texts to messages, messages and questions to answers.

    SIGTERM or Ctrl-C stops it: what is accepted is finished first.

    Example: latentwire serve --role receiver --receiver gemma3-270m --port 8000
    """
    token = _token(token_file)
    with extras():
        import uvicorn

        from latentwire.serving.engine import Engine, Limits, ends_of
        from latentwire.serving.http import create_app
    load = ends_of(ckpt, role, names_of(*(receiver or ())), changes_of(overrides, LENGTH))
    limits = Limits(queue, batch, timeout, max_body, max_text_tokens, max_question, max_new_tokens)
    listener = _listen(host, port)
    engine = Engine(load, limits, role)
    logs = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    logs["handlers"]["access"]["stream"] = "ext://sys.stderr"
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(engine, token),
            log_config=logs,
            log_level="info" if access_log else "warning",
            access_log=access_log,
            timeout_graceful_shutdown=timeout if grace is None else grace,  # type: ignore[arg-type]  # a part of one too
            server_header=False,
        )
    )

    def loaded(done: Future[None]) -> None:
        server.should_exit = server.should_exit or done.exception() is not None
        if done.exception() is None:
            print("ready", file=sys.stderr, flush=True)

    engine.batcher.ready.add_done_callback(loaded)
    address = listener.getsockname()
    print(f"listening on http://{f'[{address[0]}]' if ':' in address[0] else address[0]}:{address[1]}", file=sys.stderr)
    if token is None and not ip_address(address[0]).is_loopback:
        print(f"warning: no token: whoever reaches this address may use it (--token_file, {TOKEN})", file=sys.stderr)

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn has handlers of its own only while it runs; it raises the signal that stopped it again when all is done,
    # and that is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server.run([listener])
    ready = engine.batcher.ready
    if ready.done():
        ready.result()
    print("stopped", file=sys.stderr)
    if engine.batcher.alive:  # its thread still loads models or computes, which would not survive the interpreter's end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _token(file: Path | None) -> str | None:
    """The bearer token of a file or of the environment."""
    if file is None and TOKEN not in os.environ:
        return None
    where = TOKEN if file is None else f"--token_file: {file}"
    with reading(where):
        token = (os.environ[TOKEN] if file is None else file.read_text(encoding="utf-8")).strip()
    if not token:
        raise DataError(f"{where}: no token in it")
    return token


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, TypeError, UnicodeError) as error:  # the latter two where a name is none that DNS could hold
        raise LatentWireError(f"--host, --port: {host}:{port}: {getattr(error, 'strerror', None) or error}") from None
