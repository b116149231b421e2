"""Load a data set by name, as passages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latentwire.config.schema import DataConfig
from latentwire.core.errors import DataError
from latentwire.data.example import Passage
from latentwire.data.squad import parse_squad


def load_passages(config: DataConfig, split: str, limit: int | None = None) -> list[Passage]:
    """Passages of the "train" or "validation" split, with at most `limit` questions in all."""
    key = "data_path" if split == "train" else "eval_path"
    paths = config.data_path if split == "train" else config.eval_path
    passages: list[Passage] = []
    for path in [paths] if isinstance(paths, str) else paths or []:
        passages += _read_file(config.dataset, Path(path), f"data.{key}")
    if not passages:
        raise DataError(f"data.{key}: no question in {paths}")
    return take_questions(passages, limit)


def _read_file(dataset: str, path: Path, key: str) -> list[Passage]:
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{key}: {path}: no such file") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{key}: {path}: not a readable JSON file: {error}") from None
    try:
        return parse_squad(raw, version2=dataset == "squad_v2")
    except (KeyError, TypeError) as error:
        raise DataError(f"{key}: {path}: not in the format of {dataset}: {error!r}") from None


def take_questions(passages: list[Passage], limit: int | None) -> list[Passage]:
    """The first passages that hold `limit` questions together; the last one is cut."""
    if limit is None:
        return passages
    out: list[Passage] = []
    for passage in passages:
        if limit <= 0:
            break
        kept = passage.questions[:limit]
        out.append(Passage(passage.id, passage.context, kept))
        limit -= len(kept)
    return out


def load_texts(path: str) -> list[str]:
    """Plain text, one paragraph a line; empty lines are left out."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.text_path: {path}: could not be read: {error}") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"data.text_path: {path}: no text in it")
    return texts
