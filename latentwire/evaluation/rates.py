"""F1 against bytes: the same questions answered from the same latents, through one codec after the other."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentwire.checkpoint.parts import load_codebooks
from latentwire.checkpoint.tensors import read_info
from latentwire.config import Config
from latentwire.core.atomic import make_folder
from latentwire.core.errors import DataError
from latentwire.core.hashing import stable_hash
from latentwire.core.json_files import read_json, write_json
from latentwire.core.manifest import git_state
from latentwire.core.measures import SIZE_COLUMNS
from latentwire.data import data_fingerprint
from latentwire.data.example import Passage
from latentwire.evaluation.answering import Item, answer_batch, batches, encode_items
from latentwire.evaluation.efficiency import message_bytes
from latentwire.evaluation.evaluate import lossless_limits
from latentwire.evaluation.modes import MODES
from latentwire.evaluation.summary import measure
from latentwire.model.pretrained import load_checkpoint
from latentwire.model.system import LatentWire
from latentwire.wire.codecs import CODECS, LearnedCodec
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
            **{column: size[kind] for kind, column in SIZE_COLUMNS.items()},
            **{key: found[key] for key in ("f1", "f1_ci", "em", "em_ci", "first_token_acc", "nll_per_token")},
            "samples": len(answers),
            "passages": len(items),
        }


def every_codec(folder: Path) -> list[str]:
    """Every codec; learned ones that the checkpoint has codebooks of, in each number of layers."""
    plain = [name for name, codec in CODECS.items() if not isinstance(codec, LearnedCodec)]
    books = load_codebooks(folder)
    return plain + [f"{kind}:layers={n + 1}" for kind, book in books.items() for n in range(len(book.layers))]


class Rates:
    """Rows of `rate` in a file, which a second measuring goes on with.

    rows: those made with the very same checkpoint, questions and options; what else the file holds stays in it.
    """

    def __init__(self, path: Path, folder: Path, config: Config, passages: Sequence[Passage], lm_bytes: bool):
        self.path, self.folder, self.config, self.passages, self.lm_bytes = path, folder, config, passages, lm_bytes
        files, known = read_info(folder)["files"], read_json(path) if path.is_file() else []
        if not isinstance(known, list) or not all(isinstance(row, dict) for row in known):
            raise DataError(f"{path}: not a list of rows, so it is left as it is; choose another --out")
        how = {"config": config.model_dump(mode="json", exclude={"checkpoint", "diagnostics"}), "checkpoint": files}
        how |= {"lm_bytes": lm_bytes, "data": data_fingerprint(passages)}
        asked = sum(len(passage.questions) for passage in passages)
        self.same = {"samples": asked, "checkpoint": stable_hash(files)[:16], "made_with": stable_hash(how)[:16]}
        self.others = [row for row in known if not row.items() >= self.same.items()]
        self.rows = [row for row in known if row not in self.others]
        make_folder(path.parent)

    def measure(self, codecs: Sequence[str], command: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Measure FLOAT and some codecs where there are no rows of them yet, and write these; gives them as they come.

        `command`: the words that asked for it, to which those that ask for one codec are added.
        """
        measured = {row["codec"] for row in self.rows}
        missing = [spec for spec in dict.fromkeys([FLOAT, *codecs]) if spec not in measured]
        if not missing:
            return
        system, git = load_checkpoint(self.folder, self.config), git_state()
        items = encode_items(system, self.passages, FLOAT)
        lossless = lossless_limits(self.config, self.passages) if self.lm_bytes else None
        floats = {row["receiver"]: row["f1"] for row in self.rows if row["codec"] == FLOAT}
        for spec in missing:
            made = {"command": shlex.join([*command, "--codec", spec]), "commit": git and git["commit"]}
            for row in rate(system, items, spec, self.config, lossless):
                float_f1 = floats.setdefault(row["receiver"], row["f1"])  # FLOAT comes first
                self.rows.append(row | {"float_f1": float_f1} | made | self.same)
                yield self.rows[-1]
            write_json(self.path, self.others + self.rows)
