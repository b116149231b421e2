"""Refuses requests that no message can be read from, before they reach the engine, with the reason.

`vllm serve --middleware latentwire.serving.vllm_gate.WireGate`. The connector checks every request again and lets none
of these through, but an engine can only say that a request failed.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import HTTPException

from latentwire.core.errors import LatentWireError, WireError
from latentwire.serving.vllm_requests import KEY, Admission


class WireGate:
    """ASGI middleware; it looks only at bodies in which the message's key occurs.

    vLLM puts it outside of all others, also of the one that asks for an API key. Therefore it looks at a body when
    that is read, which is behind them, and ends the reading with an error that vLLM answers in its own form.
    """

    def __init__(self, app: Any):
        self.app = app
        self.admission: Admission | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        pieces: list[bytes] = []

        async def checked() -> Any:
            event = await receive()
            if event["type"] == "http.request":
                pieces.append(event.get("body", b""))
                if not event.get("more_body", False):
                    body = b"".join(pieces)
                    pieces.clear()
                    if KEY.encode() in body and (reason := self._why_not(scope["app"].state, body)):
                        raise HTTPException(400, reason)
            return event

        await self.app(scope, checked, send)

    def _why_not(self, state: Any, body: bytes) -> str | None:
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return None  # vLLM itself refuses it
        if not isinstance(asked, dict):
            return None
        prompt = asked.get("prompt")
        if isinstance(prompt, list) and len(prompt) > state.vllm_config.model_config.max_model_len:
            return None  # the same, and the latents for so many positions might fill the memory
        try:
            if self.admission is None:
                self.admission = Admission.of(state.vllm_config)
            if self.admission.admit(asked.get("kv_transfer_params"), prompt, asked.get("cache_salt")):
                for key in ("echo", "prompt_logprobs"):
                    if asked.get(key) is not None and asked[key] is not False:
                        raise WireError(f"{key}: there is no prompt in place of a message")
                if asked.get("use_beam_search"):  # whose own requests vLLM makes without the message
                    raise WireError("use_beam_search: not from a message")
        except LatentWireError as error:
            return str(error)
        return None
