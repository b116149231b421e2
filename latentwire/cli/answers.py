"""What `ask`, `chat` and `decode` share: questions checked, a checkpoint opened, answers shown while they are made."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from latentwire.cli.files import label, text_of
from latentwire.cli.options import LENGTH, changes_of, names_of
from latentwire.cli.run import plural
from latentwire.config import some_receivers
from latentwire.core.errors import DataError, ModelError
from latentwire.core.unicode import utf8

if TYPE_CHECKING:
    from latentwire.model.asking import Answered, Conversation
    from latentwire.model.receiver import Source
    from latentwire.model.system import LatentWire

    Key = tuple[str, Source]  # a receiver, and what it reads

LABELS: dict[Source, str] = {"latents": "message", "text": "text"}


def open_checkpoint(ckpt: str, names: Sequence[str], overrides: Sequence[str]) -> LatentWire:
    """The sender and the named receivers of a checkpoint, or all."""
    from latentwire.checkpoint.index import find_checkpoint, load_config_of

    folder = find_checkpoint(ckpt)
    config = load_config_of(folder, changes_of(overrides, LENGTH))
    chosen = some_receivers(config.model.chosen, names_of(*names), f"--receiver: {folder}")
    if sys.stderr.isatty():
        print("loading the models", file=sys.stderr, flush=True)
    from latentwire.model.pretrained import load_checkpoint

    return load_checkpoint(folder, config, list(chosen))


def read_text(name: str) -> str:
    """The text of a file or pipe; DataError where there is none."""
    text = "".join(text_of(name))
    if not text.strip():
        raise DataError(f"{label(name)}: no text in it")
    return text


def check_questions(asked: Sequence[str]) -> None:
    """DataError where nothing is asked, or what is asked is no text."""
    if not asked or not all(question.strip() for question in asked):
        raise DataError("QUESTION: nothing is asked (latentwire chat FILE asks for questions)")
    for question in asked:
        utf8(question, "QUESTION: it")


def summary(name: str, conversation: Conversation) -> str:
    """What became of a text, in one line."""
    messages = plural(len(conversation.messages["latents"]), "message")
    latents, size = plural(conversation.latents, "latent"), conversation.bytes
    return (
        f"{name}: {size['text']} bytes of text -> {messages}, {latents}, "
        f"{size['latents']} bytes, in {conversation.encode_s:.2f} s"
    )


TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that turn the direction of what follows."""


def printable(text: str) -> str:
    """A text on one line, without what would move a terminal's cursor or give it orders."""
    orders = ("Cc", "Zl", "Zp")
    return "".join("\ufffd" if unicodedata.category(c) in orders or c in TURNS else c for c in text)


class Silent:
    """Shows nothing. The other two show one question's answers while they are made.

    `told` gets an answer so far, `done` the whole one, or why there is none.
    """

    def __init__(self, question: str, keys: Sequence[Key]):
        self.question, self.keys = question, keys

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def told(self, key: Key, so_far: str) -> None:
        pass

    def done(self, key: Key, answered: Answered | str) -> None:
        pass


class Lines(Silent):
    """One line an answer, for pipes."""

    def __enter__(self) -> Lines:
        print(self.question)
        self.width = max(len(f"{name} {LABELS[source]}") for name, source in self.keys)
        self.shown: str | None = None
        return self

    def told(self, key: Key, so_far: str) -> None:
        so_far = printable(so_far)
        if self.shown is None:
            print(f"  {f'{key[0]} {LABELS[key[1]]}':{self.width}}  ", end="")
            self.shown = ""
        if so_far.startswith(self.shown):
            print(so_far.removeprefix(self.shown), end="", flush=True)
            self.shown = so_far

    def done(self, key: Key, answered: Answered | str) -> None:
        answer = printable(answered if isinstance(answered, str) else answered.answer)
        if self.shown and not answer.startswith(self.shown):  # a token changed how those before it are written
            print()
            self.shown = None
        self.told(key, answer)
        if isinstance(answered, str):
            print()
        else:
            print(
                f"  ({answered.positions} positions, read in {answered.read_s:.3f} s, first token after "
                f"{answered.first_token_s:.3f} s, answer after {answered.answer_s:.3f} s)"
            )
        self.shown = None


class Table(Silent):
    """A table that fills while answers come, for terminals."""

    def __enter__(self) -> Table:
        from rich.live import Live

        self.so_far = dict.fromkeys(self.keys, "")
        self.cost: dict[Key, Answered] = {}
        self.live = Live(get_renderable=self._table, refresh_per_second=8)
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def told(self, key: Key, so_far: str) -> None:
        self.so_far[key] = so_far

    def done(self, key: Key, answered: Answered | str) -> None:
        if isinstance(answered, str):
            self.so_far[key] = answered
        else:
            self.so_far[key], self.cost[key] = answered.answer, answered

    def _table(self) -> Any:
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=Text(self.question), title_justify="left", expand=True)
        for title in ("receiver", "reads"):
            table.add_column(title, no_wrap=True)
        table.add_column("answer", ratio=1)
        for title in ("positions", "read s", "first s", "answer s"):
            table.add_column(title, justify="right", no_wrap=True)
        for key, so_far in self.so_far.items():
            cost = self.cost.get(key)
            figures = () if cost is None else (cost.read_s, cost.first_token_s, cost.answer_s)
            cells = ["" if cost is None else str(cost.positions), *(f"{seconds:.3f}" for seconds in figures)]
            table.add_row(key[0], LABELS[key[1]], Text(printable(so_far)), *cells)
        return table


def screen_for_output() -> type[Silent]:
    """The table on a terminal, lines in a pipe."""
    return Table if sys.stdout.isatty() else Lines


def ask_all(
    conversation: Conversation,
    question: str,
    names: Sequence[str],
    text_too: bool,
    max_new_tokens: int,
    screen: type[Silent],
) -> list[dict[str, Any]]:
    """Every named receiver's answers to a question, one after another so that their times compare.

    A text that is longer than a receiver's window has no answer but a `note`; a message that is, ends it.
    """
    sources: tuple[Source, ...] = ("latents", "text") if text_too else ("latents",)
    keys = [(name, source) for name in names for source in sources]
    rows: list[dict[str, Any]] = []
    with screen(question, keys) as shown:
        for key in keys:
            name, source = key
            try:
                answered = conversation.answer(name, question, source, max_new_tokens, partial(shown.told, key))
            except ModelError as error:
                if source == "latents":
                    raise
                shown.done(key, f"[{error}]")
                rows.append({"receiver": name, "source": source, "answer": None, "note": str(error)})
                continue
            shown.done(key, answered)
            rows.append(asdict(answered) | {"note": None})
    return rows
