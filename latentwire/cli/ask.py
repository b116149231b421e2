"""`latentwire ask`: questions on a text that is compressed once for all receivers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from latentwire.cli.answers import (
    MaxNewTokens,
    Receivers,
    Silent,
    TextToo,
    ask_all,
    open_checkpoint,
    read_text,
    screen_for_output,
    summary,
)
from latentwire.cli.files import DEFAULT_CHECKPOINT, Checkpoint, Debug, Json, Overrides, label
from latentwire.core.atomic import dump_json
from latentwire.core.errors import DataError


def ask(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The text; - is standard input.")],
    questions: Annotated[list[str] | None, typer.Argument(metavar="QUESTION", help="What to ask.")] = None,
    more: Annotated[
        list[str] | None, typer.Option("--question", metavar="TEXT", help="The same; may be given several times.")
    ] = None,
    receiver: Receivers = None,
    ckpt: Checkpoint = DEFAULT_CHECKPOINT,
    text_too: TextToo = True,
    max_new_tokens: MaxNewTokens = 24,
    as_json: Json = False,
    overrides: Overrides = None,
    debug: Debug = False,
) -> dict[str, Any]:
    """Answer questions on a text from one message, and from the text itself, as the answers come.

    Example: latentwire ask notes.txt "Who wrote them?" --receiver gemma3-270m --receiver smollm2-135m
    """
    asked = [*(questions or []), *(more or [])]
    if not asked:
        raise DataError("QUESTION: nothing is asked (latentwire chat FILE asks for questions)")
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
