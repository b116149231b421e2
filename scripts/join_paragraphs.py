"""Longer passages for a file in SQuAD's format: neighbouring paragraphs of an article as one, with some questions.

What stands around a message (BOS, question, "Answer:") weighs little beside a longer text, so that windows of the same
size save more positions in all.

    python scripts/join_paragraphs.py squad_dev.json long.json --paragraphs 3 --questions 4 --seed 8
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from latentwire.cli.run import as_program
from latentwire.core.errors import LatentWireError
from latentwire.core.json_files import read_json, write_json


def joined(paragraphs: list[dict[str, Any]], most: int, rng: random.Random) -> dict[str, Any]:
    """Paragraphs as one, with at most `most` of all their questions, whose answers move along."""
    context, asked = "", []
    for paragraph in paragraphs:
        start = len(context) + bool(context)
        context = f"{context} {paragraph['context']}" if context else paragraph["context"]
        for question in paragraph["qas"]:
            answers = [a | {"answer_start": a["answer_start"] + start} for a in question["answers"]]
            asked += [question | {"answers": answers}] if answers else []
    return {"context": context, "qas": rng.sample(asked, min(most, len(asked)))}


def main(
    source: Annotated[str, typer.Argument(metavar="FILE")],
    out: Annotated[str, typer.Argument(metavar="OUT")],
    paragraphs: Annotated[int, typer.Option(min=1, help="So many become one; what is left over is not taken.")] = 3,
    questions: Annotated[int, typer.Option(min=0, help="Most questions on each.")] = 4,
    seed: Annotated[int, typer.Option(help="Which questions.")] = 0,
) -> None:
    """Join neighbouring paragraphs of FILE's articles."""
    rng, articles, count = random.Random(seed), [], 0
    for article in read_json(Path(source))["data"]:
        own = article["paragraphs"]
        runs = [own[k : k + paragraphs] for k in range(0, len(own) - paragraphs + 1, paragraphs)]
        articles.append(article | {"paragraphs": [joined(run, questions, rng) for run in runs]})
        count += len(runs)
    write_json(Path(out), {"version": "1.1", "data": articles})
    print(f"{out}: {count} passages, {sum(len(p['qas']) for a in articles for p in a['paragraphs'])} questions")


app = as_program(main)


if __name__ == "__main__":
    try:
        app()
    except LatentWireError as error:
        sys.exit(f"error: {error}")
    except (KeyError, TypeError) as error:
        sys.exit(f"error: not in the format of SQuAD: {error}")
