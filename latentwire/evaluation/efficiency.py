"""What a message costs: positions, bytes, and seconds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import zstandard

from latentwire.backbone.context import Context
from latentwire.config.sections.running import EvaluationConfig
from latentwire.diagnostics.timing import timed
from latentwire.evaluation.answering import Item, given_to
from latentwire.evaluation.modes import Given, Mode
from latentwire.model.receiver import Receiver
from latentwire.model.system import LatentWire
from latentwire.wire.message import Wire


def positions(receiver: Receiver, items: Sequence[Item]) -> dict[str, float]:
    """Mean prompt positions a question, of text path and latent path: all that a receiver is given counts."""
    text, latent = [], []
    for item in items:
        own = item.texts[receiver.name]
        for question in item.passage.questions:
            tail = len(receiver.prompt.tail(question.text))
            text.append(len(own.ids) + tail)
            latent.append(own.head_len + own.latents + receiver.extra_positions + tail)
    return {"text": statistics.fmean(text), "latent": statistics.fmean(latent)}


def message_bytes(receiver: Receiver, items: Sequence[Item], lossless: Sequence[int] | None) -> dict[str, Any]:
    """Mean bytes a passage: the serialized wire, and the text as UTF-8, as zstd -19, as packed token ids, and, where
    it was asked for, losslessly coded by the sender's own model (`lossless`, one number a passage)."""
    compressor = zstandard.ZstdCompressor(level=19)
    bits = math.ceil(math.log2(len(receiver.lm.tokenizer)))
    texts = [item.passage.context.encode() for item in items]
    ids = [len(i.texts[receiver.name].ids) - i.texts[receiver.name].head_len for i in items]
    return {
        "wire": statistics.fmean(len(item.message) for item in items),
        "utf8": statistics.fmean(map(len, texts)),
        "zstd": statistics.fmean(len(compressor.compress(text)) for text in texts),
        "packed_ids": statistics.fmean(math.ceil(n * bits / 8) for n in ids),
        "lm_bytes": None if lossless is None else statistics.fmean(lossless),
    }


def bits_per_dimension(items: Sequence[Item]) -> float:
    """Mean bits of a message, header included, for each number of its latents."""
    sections = [Wire.from_bytes(item.message).frame.latents for item in items]
    sizes = [section.count * section.d_z for section in sections if section is not None]
    return statistics.fmean(8 * len(item.message) / size for item, size in zip(items, sizes, strict=True))


def bits_per_latent(items: Sequence[Item]) -> float:
    """Mean bits of a message, header included, for each of its latents."""
    return statistics.fmean(8 * len(item.message) / item.sent.latents for item in items)


def byte_ratios(means: dict[str, Any]) -> dict[str, float | None]:
    """The wire's bytes as a multiple of those of each form of the text: below 1, the message is the smaller one."""
    return {key: value and means["wire"] / value for key, value in means.items() if key != "wire"}


@torch.no_grad()
def latency(
    system: LatentWire, receiver: Receiver, mode: Mode, items: Sequence[Item], own: EvaluationConfig
) -> dict[str, float]:
    """Median seconds over items, one question at a time, after one untimed pass.

    encode: text to bytes (0 where nothing is encoded); prefill: from what is given to a context that a question can
    follow; first_token: the prefill, the question and one answer token; answer: the prefill and the whole answer.
    """
    seconds: dict[str, list[float]] = {"encode": [], "prefill": [], "first_token": [], "answer": []}
    with receiver.using(mode.adapter):
        for number, item in enumerate([items[0], *items]):
            tail = receiver.prompt.tail(item.passage.questions[0].text)
            sends = partial(_sent, system, item.passage.context, own.codec)
            encode = timed(sends)[1] if mode.name == "latent" else 0.0

            known = None if mode.name == "latent" else given_to(receiver, [item])

            def read(item: Item = item, known: Given | None = known) -> Context:
                return mode.read(receiver, known or given_to(receiver, [item]))  # latents from the message's bytes on

            prefill = timed(read)[1]

            def run(new: int, made: int, read: Callable[[], Context] = read, tail: list[int] = tail) -> Any:
                return timed(lambda: receiver.generate(read(), [tail], new, candidates=made))

            first, whole = run(1, 1)[1], run(own.max_new_tokens, own.candidates)[1]
            if number:
                for key, value in zip(seconds, (encode, prefill, first, whole), strict=True):
                    seconds[key].append(value)
    return {key: round(statistics.median(values), 5) for key, values in seconds.items()}


def _sent(system: LatentWire, text: str, codec: str) -> bytes:
    return system.sender.encode(text, codec).to_bytes()
