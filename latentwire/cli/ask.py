"""`latentwire ask`: questions on a text that is compressed once for all receivers."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from latentwire.cli.answers import (
    Silent,
    ask_all,
    check_questions,
    open_checkpoint,
    printable,
    read_text,
    screen_for_output,
    summary,
)
from latentwire.cli.extras import extras
from latentwire.cli.files import label
from latentwire.cli.options import (
    DEFAULT_CHECKPOINT,
    LENGTH,
    Checkpoint,
    Json,
    MaxNewTokens,
    OnlyReceivers,
    Overrides,
    TextToo,
    changes_of,
    names_of,
)
from latentwire.config import some_receivers
from latentwire.core.errors import ConfigError, DataError, ModelError, WireError
from latentwire.core.json_files import dump_json


def ask(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="The text; - is standard input. None with --index.")
    ] = None,
    questions: Annotated[list[str] | None, typer.Argument(metavar="QUESTION", help="What to ask.")] = None,
    more: Annotated[
        list[str] | None, typer.Option("--question", metavar="TEXT", help="The same; may be given several times.")
    ] = None,
    receiver: OnlyReceivers = None,
    ckpt: Checkpoint = DEFAULT_CHECKPOINT,
    index: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Ask the corpus that `latentwire index` compressed.")
    ] = None,
    documents: Annotated[
        int | None,
        typer.Option(min=1, help="With --index: documents found for a question and read as one text; default: 1."),
    ] = None,
    text_too: TextToo = True,
    max_new_tokens: MaxNewTokens = 24,
    as_json: Json = False,
    overrides: Overrides = None,
) -> dict[str, Any]:
    """Answer questions on a text from one message, and from the text itself, as the answers come.

    With --index, the text is found among the documents of an index, and answered from its stored message.

    Example: latentwire ask notes.txt "Who wrote them?" --receiver gemma3-270m --receiver smollm2-135m
    """
    asked = [*(questions or []), *(more or [])]
    if index is not None:
        if not text_too:
            raise ConfigError("--no-text: does nothing with --index, which answers from messages alone")
        if file and os.path.isfile(file):  # a question may be longer than a file's name can be
            raise ConfigError(f"{file}: with --index the text is found in the index; name a question")
        asked = [*([file] if file else []), *asked]
        return _ask_index(index, asked, receiver or [], ckpt, overrides or [], documents or 1, max_new_tokens, as_json)
    if documents is not None:
        raise ConfigError("--documents: only with --index")
    if file is None:
        raise DataError("FILE: neither a text nor --index is named")
    check_questions(asked)
    text = read_text(file)
    system = open_checkpoint(ckpt, receiver or [], overrides or [])
    from latentwire.model.asking import Conversation

    conversation = Conversation(system, text)
    if not as_json:
        print(summary(label(file), conversation), flush=True)
    names, screen = list(system.receivers), Silent if as_json else screen_for_output()
    result = {
        "file": file,
        "checkpoint": ckpt,
        "text": {"characters": len(text), "bytes": conversation.bytes["text"]},
        "message": {
            "count": len(conversation.messages["latents"]),
            "latents": conversation.latents,
            "bytes": conversation.bytes["latents"],
            "encode_s": conversation.encode_s,
        },
        "questions": [
            {
                "question": question,
                "answers": ask_all(conversation, question, names, text_too, max_new_tokens, screen),
            }
            for question in asked
        ],
    }
    if as_json:
        print(dump_json(result), end="")
    return result


def _ask_index(
    folder: Path,
    asked: Sequence[str],
    names: Sequence[str],
    ckpt: str,
    overrides: Sequence[str],
    documents: int,
    max_new_tokens: int,
    as_json: bool,
) -> dict[str, Any]:
    """Answers from the messages of a corpus, found by the words of each question. No sender is loaded."""
    check_questions(asked)
    with extras():
        from latentwire.serving.index import Index, answer_from_hits
    index = Index(folder)
    from latentwire.checkpoint.index import find_checkpoint, load_config_of, sender_fingerprint

    checkpoint, changes = find_checkpoint(ckpt), changes_of(overrides, LENGTH)
    chosen = some_receivers(
        load_config_of(checkpoint, changes).model.chosen, names_of(*names), f"--receiver: {checkpoint}"
    )
    if index.info.get("text", "none") == "none" and index.info["sender"] != sender_fingerprint(checkpoint).hex():
        raise WireError(f"{folder}: made by another sender than that of {checkpoint}, and it holds no texts")
    from latentwire.model.pretrained import load_receivers

    receivers = load_receivers(checkpoint, chosen, changes)
    out = []
    for question in asked:
        rows: list[dict[str, Any]] = []
        if not as_json:
            print(question)
        hits = index.search(question, documents)
        found = [{"id": hit.id, "score": hit.score} for hit in hits]
        for name, receiver in receivers.items():
            answer: dict[str, Any] = {"answer": None, "source": None}
            said, reply = "[no document shares a word with the question]", None
            try:
                reply = answer_from_hits(receiver, hits, question, max_new_tokens)
            except ModelError as error:  # they are longer than its window; another question may find shorter ones
                answer["note"] = str(error)
                said = f"[{printable(str(error))}]"
            if reply:
                answer = {"answer": reply.text, "source": reply.source, "note": reply.note}
                said = printable(reply.text)
            rows.append({"receiver": name, "documents": found} | answer)
            if not as_json:
                where = f"  (from {', '.join(printable(hit.id) for hit in hits)})" if hits else ""
                print(f"  {name}  {said}{where}", flush=True)
                if reply and reply.note:
                    print(f"  {name}: answered from the text in the message: {reply.note}", file=sys.stderr)
        out.append({"question": question, "answers": rows})
    result = {"index": str(folder), "checkpoint": ckpt, "questions": out}
    if as_json:
        print(dump_json(result), end="")
    return result
