"""Load a data set by name, as passages."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from latentwire.config.sections.inputs import DataConfig
from latentwire.core.errors import DataError
from latentwire.core.json_files import read_json
from latentwire.core.unicode import reading, utf8
from latentwire.data.cloze import cloze_passages
from latentwire.data.example import Passage
from latentwire.data.facts import make_facts
from latentwire.data.hotpot import parse_hotpot
from latentwire.data.hub import load_from_hub
from latentwire.data.renamed import renamed_passages
from latentwire.data.squad import parse_squad

FACTS_QUESTIONS = {"train": 20_000, "validation": 2_000}
"""Questions that `facts` makes when no number is asked for."""


def load_passages(config: DataConfig, split: str, limit: int | None = None) -> list[Passage]:
    """Passages of the "train" or "validation" split, with at most `limit` questions in all.

    Training passages come in an order drawn with data.seed, so that a limit is a sample rather than a file's beginning;
    with data.cloze, those made from plain text are among them, and with data.renamed some once more, with other names.

    `facts` is made on the spot; the others come from data.data_path (train) or data.eval_path (validation), or, where
    that is not given, through the `datasets` library.
    """
    key, given = check_source(config, split)
    if config.dataset == "facts":
        passages = make_facts(config.seed, split, limit or FACTS_QUESTIONS[split])
    else:
        passages = _load_dataset(config, split, key, given)
    if split == "train":
        if config.cloze and config.text_path:
            passages += cloze_passages(load_texts(config.text_path), config.cloze, config.seed)
        if config.renamed:
            passages += list(renamed_passages(passages, config.renamed, config.seed))
        if config.cloze or config.renamed or config.dataset != "facts":
            random.Random(config.seed).shuffle(passages)
    return take_questions(passages, limit)


def check_source(config: DataConfig, split: str) -> tuple[str, str | list[str] | None]:
    """The key that names the files of a split, and what it names; DataError where the dataset is not read from any."""
    key = "data.data_path" if split == "train" else "data.eval_path"
    given = config.data_path if split == "train" else config.eval_path
    if config.dataset == "facts" and given is not None:
        raise DataError(f"{key}: {given}: the dataset is facts, which are made up and not read; name another one")
    return key, given


def _load_dataset(config: DataConfig, split: str, key: str, given: str | list[str] | None) -> list[Passage]:
    if given is None:
        passages = load_from_hub(config, split, key)
    else:
        paths = [given] if isinstance(given, str) else given
        passages = [p for path in paths for p in _read_file(config, Path(path), key)]
    if not passages:
        raise DataError(f"{key}: {given or config.dataset}: no question in it")
    return passages


def _read_file(config: DataConfig, path: Path, key: str) -> list[Passage]:
    raw = read_json(path, DataError, f"{key}: {path}")
    dataset = config.dataset
    try:
        if dataset == "hotpot":
            passages = parse_hotpot(raw, config.hotpot_context)
        else:
            passages = parse_squad(raw, version2=dataset == "squad_v2")
    except KeyError as error:
        raise DataError(f"{key}: {path}: not in the format of {dataset}: key {error} is missing") from None
    except (TypeError, ValueError, AttributeError):  # what Python says of it tells nothing of the file
        form = (
            "a list of questions with their context"
            if dataset == "hotpot"
            else "whose questions lie under data, paragraphs, qas"
        )
        raise DataError(f"{key}: {path}: not in the format of {dataset}, {form}") from None
    for passage in passages:
        for text in (passage.context, *(text for q in passage.questions for text in (q.id, q.text, *q.answers))):
            utf8(text, f"{key}: {path}: passage {passage.id!r}")
    return passages


def take_questions(passages: list[Passage], limit: int | None) -> list[Passage]:
    """The first passages that hold `limit` questions together; the last one is cut."""
    if limit is None:
        return passages
    out: list[Passage] = []
    for passage in passages:
        if limit <= 0:
            break
        kept = passage.questions[:limit]
        out.append(replace(passage, questions=kept))
        limit -= len(kept)
    return out


def load_texts(path: str) -> list[str]:
    """Plain text, one paragraph a line; empty lines are left out."""
    with reading(f"data.text_path: {path}"):
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"data.text_path: {path}: no text in it")
    return texts
