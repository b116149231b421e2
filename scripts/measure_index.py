"""Index a corpus that holds the passages of a question file among others, then answer its questions from the index.

It says how often the passage of a question is found, and how good the answers are that each receiver gives from the
stored message of the best document, beside those from that document's text (with the LoRA tuned on text, where the
checkpoint has one) and from the message of the right passage. docs/corpora.md has figures.

    python scripts/measure_index.py runs/index --data_path squad_dev.json --text_path paragraphs.txt --paragraphs 2000
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from tqdm import tqdm

from latentwire import Receiver, Sender, Wire
from latentwire.checkpoint.index import find_checkpoint, load_config_of
from latentwire.cli.run import as_program
from latentwire.config.sections.inputs import DataConfig
from latentwire.core.atomic import write_bytes
from latentwire.core.errors import LatentWireError
from latentwire.core.intervals import estimate
from latentwire.core.metrics import f1_score
from latentwire.data.documents import read_documents
from latentwire.data.example import Passage, Question
from latentwire.data.load import load_passages, load_texts
from latentwire.model.receiver import Message
from latentwire.serving.build_index import build_index, recipe
from latentwire.serving.index import Index

BEST = (1, 3, 5)
"""Ranks up to which a hit is counted."""
BATCH = 16


class Asked(NamedTuple):
    """A question on the passage of that number, and the numbers of the documents found, best first."""

    question: Question
    passage: int
    found: list[int]


def write_corpus(path: Path, passages: Sequence[Passage], texts: Sequence[str], most: int) -> list[str]:
    """The passages' texts and `most` others, one JSON object a line; returns them in order."""
    own = {passage.context for passage in passages}
    others = [text for text in dict.fromkeys(texts) if text not in own][:most]
    corpus = [*(passage.context for passage in passages), *others]
    lines = (json.dumps({"id": str(number), "text": text}) for number, text in enumerate(corpus))
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
    return corpus


def answers(receiver: Receiver, messages: Sequence[Message], asked: Sequence[Asked]) -> tuple[list[float], float]:
    """F1 of the answer to each question from the message of the same place, and the seconds all of them took."""
    scores: list[float] = []
    started = time.perf_counter()
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        replies = receiver.answer_batch(messages[start : start + BATCH], [[one.question.text] for one in batch])
        scores += [f1_score(reply.text, one.question.answers) for one, (reply,) in zip(batch, replies, strict=True)]
    return scores, time.perf_counter() - started


def measure(
    ckpt: str, names: Sequence[str], found: Index, corpus: Sequence[str], asked: Sequence[Asked]
) -> dict[str, Any]:
    """Each receiver's answers from the best document's message, from its text, and from the right passage's message."""
    clusters = [one.passage for one in asked]
    ways: dict[str, list[Message]] = {
        "message": [found.document(one.found[0])[1] for one in asked],
        "text": [Wire.of(text=corpus[one.found[0]]) for one in asked],
        "message_of_right_passage": [found.document(one.passage)[1] for one in asked],
    }
    out: dict[str, Any] = {}
    for name in names:
        receiver = Receiver.from_pretrained(ckpt, name)
        for way, messages in ways.items():
            scores, seconds = answers(receiver, messages, asked)
            rate = {"answers_per_s": round(len(asked) / seconds, 2)}
            f1 = {key: np.round(value, 4).tolist() for key, value in estimate("f1", scores, clusters).items()}
            out.setdefault(name, {})[way] = f1 | rate
        receiver.close()
    return out


def main(
    out: Path,
    data_path: Annotated[str, typer.Option("--data_path", help="Questions, in SQuAD's format.")],
    text_path: Annotated[str, typer.Option("--text_path", help="Plain text, one paragraph a line.")],
    ckpt: Annotated[str, typer.Option(help="Checkpoint.")] = "checkpoints/default",
    receivers: Annotated[
        list[str] | None, typer.Option("--receiver", help="Receiver; default: all of the checkpoint.")
    ] = None,
    paragraphs: Annotated[int, typer.Option(min=0, help="Paragraphs of it in the corpus.")] = 2000,
    questions: Annotated[int, typer.Option(min=1, help="Questions asked.")] = 300,
    codec: Annotated[str, typer.Option(help="Codec of the messages.")] = "int8",
) -> None:
    """Index passages and paragraphs in OUT, answer the passages' questions from the index, and print JSON."""
    try:
        passages = load_passages(DataConfig(dataset="squad", eval_path=data_path), "validation")
        corpus = write_corpus(out / "corpus.jsonl", passages, load_texts(text_path), paragraphs)
        folder, started = find_checkpoint(ckpt), time.perf_counter()
        with tqdm(unit="document", disable=None) as bar:
            made = build_index(
                read_documents(out / "corpus.jsonl"),
                out / "index",
                partial(Sender.from_pretrained, folder),
                recipe(folder, codec),
                progress=bar.update,
            )
        encode_s = time.perf_counter() - started
        names = receivers or list(load_config_of(folder).model.chosen)
        found, started = Index(out / "index"), time.perf_counter()
        asked = [
            Asked(question, number, [int(hit.id) for hit in found.search(question.text, max(BEST))])
            for number, passage in enumerate(passages)
            for question in passage.questions
        ]
        seconds = time.perf_counter() - started
        chosen = [one for one in asked if one.found][:questions]
        report = {
            "documents": made["documents"],
            "encoded": made["encoded"],
            "encode_s": round(encode_s, 1),
            "wire_bytes": round(made["wire_bytes"] / made["documents"], 1),
            "utf8_bytes": round(fmean(len(text.encode()) for text in corpus), 1),
            "searched": len(asked),
            "search_s": round(seconds / len(asked), 4),
            "hit_rate": {k: round(fmean(one.passage in one.found[:k] for one in asked), 4) for k in BEST},
            "answered": len(chosen),
            "receivers": measure(ckpt, names, found, corpus, chosen),
        }
    except LatentWireError as error:
        raise SystemExit(f"error: {error}") from None
    print(json.dumps(report, indent=2))


app = as_program(main)


if __name__ == "__main__":
    app()
