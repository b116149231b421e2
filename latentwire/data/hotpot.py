"""HotpotQA's own list format (Yang et al. 2018): questions that need two paragraphs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from latentwire.data.example import Passage, Question


def parse_hotpot(raw: Any, context: str = "supporting") -> list[Passage]:
    """One passage a question: the paragraphs that hold its supporting facts, each behind its title.

    With context "all", the distractor paragraphs stay among them. KeyError or TypeError where the structure is another
    one.
    """
    passages = []
    for row in raw:
        wanted = {title for title, _ in row["supporting_facts"]}
        text = hotpot_context((t, s) for t, s in row["context"] if context == "all" or t in wanted)
        question = Question(str(row["_id"]), row["question"].strip(), (row["answer"].strip(),))
        if text and question.answers[0]:
            passages.append(Passage(question.id, text, (question,)))
    return passages


def hotpot_context(paragraphs: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Paragraphs as text: "Title: sentence sentence", one a line."""
    return "\n".join(f"{title}: {''.join(sentences).strip()}" for title, sentences in paragraphs)
