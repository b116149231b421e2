"""F1 against bytes: the same questions answered from the same latents, through one codec after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from latentwire.config import Config
from latentwire.evaluation.answering import Item, answer_batch, batches
from latentwire.evaluation.efficiency import message_bytes
from latentwire.evaluation.modes import MODES
from latentwire.evaluation.summary import measure
from latentwire.model.system import LatentWire
from latentwire.wire.message import Wire

FLOAT = "fp32"
"""The codec that the others are compared with: latents as they are."""


def sent_again(system: LatentWire, items: Sequence[Item], codec: str) -> list[Item]:
    """The items with their latents, which came in FLOAT, in messages of another codec. Nothing is encoded anew."""
    writer, sender = system.sender.ready(codec), system.sender.fingerprint
    return [
        replace(item, message=Wire.of(Wire.from_bytes(item.message).latents, writer, sender=sender).to_bytes())
        for item in items
    ]


def rate(
    system: LatentWire, items: Sequence[Item], codec: str, config: Config, lossless: Sequence[int] | None
) -> Iterator[dict[str, Any]]:
    """One row for each receiver: bytes of a message and of its text, means a passage, and the answers read from it.

    items: passages as they are encoded in FLOAT.
    """
    items, own = sent_again(system, items, codec), config.evaluation
    clusters = [n for n, item in enumerate(items) for _ in item.passage.questions]
    for name, receiver in system.receivers.items():
        answers = [
            answer
            for batch in batches(items, own.batch_size)
            for answer in answer_batch(receiver, MODES["latent"], batch, own.max_new_tokens, own.candidates)
        ]
        size, found = message_bytes(receiver, items, lossless), measure(answers, clusters, own.bootstrap)
        yield {
            "codec": codec,
            "receiver": name,
            "bytes": size["wire"],
            "utf8_bytes": size["utf8"],
            "zstd_bytes": size["zstd"],
            "packed_ids_bytes": size["packed_ids"],
            "lm_bytes": size["lm_bytes"],
            **{key: found[key] for key in ("f1", "f1_ci", "em", "em_ci", "first_token_acc", "nll_per_token")},
            "samples": len(answers),
            "passages": len(items),
        }
