"""Refuses requests that no message can be read from, before they reach the engine, with the reason.

`vllm serve --middleware latentwire.serving.vllm_gate.WireGate`. The connector checks every request again and lets none
of these through, but an engine can only say that a request failed.
"""

from __future__ import annotations

import json
from typing import Any

from latentwire.core.errors import LatentWireError, WireError
from latentwire.serving.vllm_requests import KEY, Admission
from latentwire.serving.vllm_slots import head_length


class WireGate:
    """ASGI middleware; it looks only at bodies in which the message's key occurs."""

    def __init__(self, app: Any):
        self.app = app
        self.admission: Admission | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        pieces, more = [], True
        while more:
            event = await receive()
            if event["type"] != "http.request":
                return  # the client left
            pieces.append(event.get("body", b""))
            more = event.get("more_body", False)
        body = b"".join(pieces)
        if KEY.encode() in body and (reason := self._why_not(scope["app"].state, body)):
            await refuse(send, reason)
            return
        whole = [{"type": "http.request", "body": body}]

        async def again() -> Any:
            return whole.pop() if whole else await receive()

        await self.app(scope, again, send)

    def _why_not(self, state: Any, body: bytes) -> str | None:
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return None  # vLLM itself refuses it
        if not isinstance(asked, dict):
            return None
        try:
            if self.admission is None:
                self.admission = admission_of(state.vllm_config.kv_transfer_config.kv_connector_extra_config)
            if self.admission.admit(asked.get("kv_transfer_params"), asked.get("prompt"), asked.get("cache_salt")):
                for key in ("echo", "prompt_logprobs"):
                    if asked.get(key):
                        raise WireError(f"{key}: there is no prompt in place of a message")
        except LatentWireError as error:
            return str(error)
        return None


def admission_of(given: dict[str, Any]) -> Admission:
    """The admission that a connector's `kv_connector_extra_config` describes."""
    checkpoint, receiver = given["checkpoint"], given["receiver"]
    limits = {"max_bytes": given["max_bytes"]} if "max_bytes" in given else {}
    return Admission(checkpoint, receiver, head_length(checkpoint, receiver), **limits)


async def refuse(send: Any, reason: str) -> None:
    """Answer 400 in vLLM's own form."""
    error = {"message": reason, "type": "BadRequestError", "param": "kv_transfer_params", "code": 400}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": error}).encode()})
