"""`latentwire chat`: questions on a text, one after another."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from latentwire.cli.answers import (
    ask_all,
    check_questions,
    open_checkpoint,
    read_text,
    screen_for_output,
    summary,
)
from latentwire.cli.options import DEFAULT_CHECKPOINT, Checkpoint, MaxNewTokens, OnlyReceivers, Overrides, TextToo
from latentwire.config import some_receivers
from latentwire.core.errors import ConfigError, DataError, LatentWireError
from latentwire.core.paths import cache_dir

HELP = """\
Anything that does not begin with / is a question on the text.
  /receiver NAME...  ask only these from now on; all without a name
  /text on|off       answer from the text as well, to compare
  /reload            read the file again
  /help              this list
  /quit              leave (also Ctrl-D)"""
KEPT_LINES = 1000


def chat(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The text.")],
    receiver: OnlyReceivers = None,
    ckpt: Checkpoint = DEFAULT_CHECKPOINT,
    text_too: TextToo = True,
    max_new_tokens: MaxNewTokens = 24,
    overrides: Overrides = None,
) -> list[dict[str, Any]]:
    """Ask about a text in a dialogue: it is compressed once, and again with /reload. /help lists the commands.

    Example: latentwire chat notes.txt --receiver gemma3-270m
    """
    if file == "-":
        raise DataError("FILE: standard input is where the questions come from; name a file")
    text = read_text(file)  # what is wrong with it is said before models are loaded
    talk = Talk(file, text, open_checkpoint(ckpt, receiver or [], overrides or []), text_too, max_new_tokens)
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    history = _remember() if terminal else None
    try:
        while not talk.over:
            try:
                line = input("> " if terminal else "").strip()
            except EOFError:
                if terminal:
                    print()
                break
            except KeyboardInterrupt:  # as in a shell, it drops the line
                print()
                continue
            try:
                talk.hear(line)
            except KeyboardInterrupt:
                print("stopped")
            except LatentWireError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
    finally:
        if history is not None:
            _keep(history)
    return talk.said


class Talk:
    """A dialogue on a file: what is read, who is asked, and all answers so far."""

    def __init__(self, file: str, text: str, system: Any, text_too: bool, max_new_tokens: int):
        self.file = Path(file)
        self.system = system
        self.names = list(system.receivers)
        self.text_too = text_too
        self.max_new_tokens = max_new_tokens
        self.said: list[dict[str, Any]] = []
        self.over = False
        self.take(text)

    def hear(self, line: str) -> None:
        """Answer a question or carry out a command; LatentWireError where that fails, with all as it was."""
        if not line.startswith("/"):
            if line:
                self.ask(line)
            return
        command, *words = line[1:].split() if line[1:].strip() else ["help"]
        if command == "quit":
            self.over = True
        elif command == "help":
            print(HELP, flush=True)
        elif command == "reload":
            self.reload()
        elif command == "receiver":
            self.choose(words)
        elif command == "text" and words in (["on"], ["off"]):
            self.text_too = words == ["on"]
            print(f"answers from the text: {words[0]}", flush=True)
        else:
            raise ConfigError(f"{line}: no such command; /help lists them")

    def reload(self) -> None:
        """Read and encode the file anew; what was read stays where that fails."""
        self.take(read_text(str(self.file)))

    def take(self, text: str) -> None:
        """Encode a text in the place of the one before."""
        from latentwire.model.asking import Conversation

        changed = self.file.stat().st_mtime_ns
        conversation = Conversation(self.system, text)
        self.conversation, self.changed = conversation, changed
        print(summary(str(self.file), conversation), flush=True)

    def choose(self, words: list[str]) -> None:
        """Ask only some receivers from now on."""
        self.names = list(some_receivers(self.system.receivers, words, "/receiver: the dialogue"))
        print(f"asking: {', '.join(self.names)}", flush=True)

    def ask(self, question: str) -> None:
        """Show and keep the answers to a question."""
        check_questions([question])
        with suppress(OSError):  # a file that is gone has been read all the same
            if self.file.stat().st_mtime_ns != self.changed:
                print(f"{self.file} has changed; /reload reads it again", flush=True)
        answers = ask_all(
            self.conversation, question, self.names, self.text_too, self.max_new_tokens, screen_for_output()
        )
        self.said.append({"question": question, "answers": answers})


def _remember() -> Path | None:
    """Line editing, and the questions of earlier dialogues; None where the terminal has none."""
    try:
        import readline
    except ImportError:
        return None
    path = cache_dir() / "chat_history"
    with suppress(OSError):
        readline.read_history_file(path)
    return path


def _keep(path: Path) -> None:
    import readline

    readline.set_history_length(KEPT_LINES)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(path)
