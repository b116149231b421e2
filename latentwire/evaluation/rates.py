"""F1 against bytes: the same questions answered from the same latents, through one codec after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from latentwire.config import Config
from latentwire.data.example import Passage
from latentwire.evaluation.answering import answer_batch, batches, encode_items
from latentwire.evaluation.efficiency import message_bytes
from latentwire.evaluation.modes import MODES
from latentwire.evaluation.summary import measure
from latentwire.model.system import LatentWire


def rate(
    system: LatentWire, passages: Sequence[Passage], codec: str, config: Config, lossless: Sequence[int] | None
) -> Iterator[dict[str, Any]]:
    """One row for each receiver: bytes of a message and of its text, means a passage, and the answers read from it."""
    items, own = encode_items(system, passages, codec), config.evaluation
    clusters = [n for n, item in enumerate(items) for _ in item.passage.questions]
    for name, receiver in system.receivers.items():
        answers = [
            answer
            for batch in batches(items, own.batch_size)
            for answer in answer_batch(receiver, MODES["latent"], batch, own.max_new_tokens)
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
