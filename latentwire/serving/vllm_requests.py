"""A request to vLLM that is answered from a message: how a client makes it, and what a server checks of it.

In place of the context, the prompt begins with placeholders, one for each position that the message takes; the message
itself is in `kv_transfer_params`. All messages have the same placeholders, so the prefix cache is salted with the
message's hash: a server takes no other salt with a message, and that salt with nothing else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentwire.backbone.load import bos_of, load_tokenizer, tokenize_with_offsets
from latentwire.checkpoint.index import sender_fingerprint
from latentwire.checkpoint.parts import load_codebooks
from latentwire.core.errors import ConfigError, WireError
from latentwire.data.prompts import PromptFormat
from latentwire.serving.vllm_slots import Served
from latentwire.wire.codecs.base import Array
from latentwire.wire.message import Wire, read_texts

KEY = "latentwire"
"""The message's key in `kv_transfer_params`: the messages of one text, one behind the other, in base64."""
SALT = "latentwire-"
"""What the salts of messages begin with; the hash follows."""
PLACEHOLDER = 0
"""The token that stands for every position of a message. The model never sees it."""
MAX_BYTES = 3 << 20


def salt_of(message: bytes) -> str:
    """The prefix-cache salt of a message."""
    return SALT + hashlib.sha256(message).hexdigest()


def wire_request(message: bytes, positions: int, tail: Sequence[int]) -> dict[str, Any]:
    """The part of a request's body that makes it one on a message, which takes so many positions before the tail."""
    return {
        "prompt": [PLACEHOLDER] * positions + list(tail),
        "cache_salt": salt_of(message),
        "kv_transfer_params": {KEY: base64.b64encode(message).decode()},
    }


@dataclass(frozen=True)
class Admitted:
    """A request's latents (M, d_z), those of this receiver alone, and the positions that they take with the head."""

    latents: Array
    positions: int


class Admission:
    """What requests may ask of a receiver. It loads no model, only codebooks.

    head_len: tokens of the constant head before the latents; max_bytes: the longest messages of a request.
    """

    def __init__(self, served: Served, head_len: int, max_bytes: int = MAX_BYTES):
        self.sender = sender_fingerprint(served.folder)
        self.d_z = served.config.encoder.d_z
        self.layout = served.config.latent_layout
        self.own = self.layout.own(served.name)
        self.head_len = head_len
        self.max_bytes = max_bytes
        load_codebooks(served.folder)

    @classmethod
    def of(cls, vllm_config: Any) -> Admission:
        """That of a running vLLM, from what its connector was given; ConfigError where that is not enough."""
        connector = vllm_config.kv_transfer_config
        given = {} if connector is None else connector.kv_connector_extra_config
        for key in ("checkpoint", "receiver"):
            if key not in given:
                raise ConfigError(f"kv_connector_extra_config.{key}: missing")
        most = given.get("max_bytes", MAX_BYTES)
        if not isinstance(most, int) or most <= 0:
            raise ConfigError(f"kv_connector_extra_config.max_bytes: {most!r}; a positive integer is needed")
        served = Served.of(given["checkpoint"], given["receiver"])
        served.need_slots()
        return cls(served, len(served.tensors()["head"]), most)

    def positions(self, wires: Sequence[Wire]) -> int:
        """Positions that messages take, head included; WireError where they cannot be read here."""
        for wire in wires:
            if reason := wire.misfit(self.sender, self.d_z, self.layout.total):
                raise WireError(reason)
        return self.head_len + sum(self.layout.read_of(wire.latent_count) for wire in wires)

    def admit(self, params: Any, prompt: Any, salt: str | None) -> Admitted | None:
        """What a request asks for, None where it is an ordinary one; WireError, in one line, where it is refused.

        params: its `kv_transfer_params`; prompt: its token ids.
        """
        given = params.get(KEY) if isinstance(params, Mapping) else None
        if given is None:
            if isinstance(salt, str) and salt.startswith(SALT):
                raise WireError(f"cache_salt: {SALT}... belongs to requests with a message in kv_transfer_params")
            return None
        message = self._decode(given)
        texts = list(read_texts(io.BytesIO(message)))
        if len(texts) != 1:
            raise WireError(f"kv_transfer_params.{KEY}: {len(texts)} texts; a request is about one")
        positions = self.positions(texts[0])
        placed = prompt[:positions] if isinstance(prompt, Sequence) else []
        if len(placed) < positions or any(token != PLACEHOLDER for token in placed):  # a message may claim millions
            raise WireError(f"prompt: token ids are needed, the first {positions} of them {PLACEHOLDER}")
        if len(prompt) == positions:
            raise WireError("prompt: there is no question behind the message's positions")
        if salt != salt_of(message):
            raise WireError(f"cache_salt: a request with this message needs {salt_of(message)}")
        own: Any = slice(None) if self.own is None else self.own
        read = [z[own] for wire in texts[0] if (z := wire.latents) is not None]
        return Admitted(np.concatenate(read), positions)

    def _decode(self, given: Any) -> bytes:
        where = f"kv_transfer_params.{KEY}"
        if not isinstance(given, str):
            raise WireError(f"{where}: a string is needed, base64 of a message")
        if len(given) > 4 * (self.max_bytes // 3 + 1):
            raise WireError(f"{where}: longer than the {self.max_bytes:,} bytes that are taken")
        try:
            return base64.b64decode(given, validate=True)
        except (binascii.Error, ValueError) as error:
            raise WireError(f"{where}: not base64: {error}") from error


class Client:
    """Makes bodies for `/v1/completions` on one receiver of a checkpoint, as `scripts/vllm_serve.sh` serves it.

    It loads the receiver's tokenizer, no model. Answers are greedy.
    """

    def __init__(self, checkpoint: str | Path, receiver: str):
        self.served = Served.of(checkpoint, receiver)
        receiver = self.served.name  # what was given may be its beginning
        self.tokenizer = load_tokenizer(self.served.model)
        self.prompt = PromptFormat(self.tokenizer, self.served.config.anchor, bos_of(self.tokenizer))
        self.admission = Admission(self.served, len(self.prompt.head))
        self.wire_model, self.text_model = (
            name if name in self.served.adapters else receiver for name in (f"{receiver}-latent", f"{receiver}-text")
        )

    def body(self, message: Wire | Sequence[Wire], question: str, max_tokens: int = 24) -> dict[str, Any]:
        """The body of a question on a text's message, or on all its messages; WireError where they do not fit.

        ConfigError where the receiver reads vectors at its input: `embeds_body`.
        """
        self.served.need_slots()
        wires = [message] if isinstance(message, Wire) else list(message)
        data = b"".join(wire.to_bytes() for wire in wires)
        asked = wire_request(data, self.admission.positions(wires), self.prompt.tail(question))
        return {"model": self.wire_model} | asked | self._greedy(max_tokens)

    def embeds_body(self, embeds: Tensor, max_tokens: int = 24) -> dict[str, Any]:
        """The body of what `Receiver.input_embeds` gives, (positions, hidden_size)."""
        file = io.BytesIO()
        torch.save(embeds.cpu(), file)  # the form that vLLM asks for; it reads weights alone
        given = {"prompt_embeds": base64.b64encode(file.getvalue()).decode()}
        return {"model": self.wire_model} | given | self._greedy(max_tokens)

    def text_body(self, text: str, question: str, max_tokens: int = 24) -> dict[str, Any]:
        """The body of the same question on the text itself."""
        context, _ = tokenize_with_offsets(self.tokenizer, text)
        ids = [*self.prompt.head, *context, *self.prompt.tail(question)]
        return {"model": self.text_model, "prompt": ids} | self._greedy(max_tokens)

    def _greedy(self, max_tokens: int) -> dict[str, Any]:
        """Sampling as the receiver's own: vLLM would take penalties and ends of text from the model's folder."""
        return {
            "temperature": 0,
            "repetition_penalty": 1,
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stop_token_ids": self.prompt.stop,
            "return_token_ids": True,
        }

    def read(self, reply: Mapping[str, Any]) -> str:
        """The answer in a reply's JSON."""
        return self.prompt.read(reply["choices"][0]["token_ids"])
