"""`latentwire decode`: a receiver's answers from messages."""

from __future__ import annotations

import json
import sys
from itertools import chain
from typing import Annotated, Any

import typer

from latentwire.cli.answers import check_questions, printable
from latentwire.cli.files import opened
from latentwire.cli.options import DEFAULT_CHECKPOINT, LENGTH, Checkpoint, Json, MaxNewTokens, Overrides, changes_of
from latentwire.core.errors import WireError
from latentwire.wire.message import Wire, read_texts


def decode(
    receiver: Annotated[str, typer.Option(metavar="NAME", help="Receiver of the checkpoint.")],
    question: Annotated[list[str], typer.Option(metavar="TEXT", help="Question; may be given several times.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="Messages; - is standard input.")] = "-",
    ckpt: Checkpoint = DEFAULT_CHECKPOINT,
    max_new_tokens: MaxNewTokens = 24,
    candidates: Annotated[int, typer.Option(min=1, help="Answers of which the closest to all is taken.")] = 1,
    as_json: Json = False,
    overrides: Overrides = None,
) -> list[dict[str, Any]]:
    """Answer questions on the texts behind messages, one line an answer; with --json, one line a text.

    Only the receiver's model and reader are loaded, not the sender.

    Example: latentwire decode story.lw --receiver gemma3-270m --question "Who is the keeper?"
    """
    check_questions(question)
    changes = changes_of(overrides, LENGTH | {"evaluation.candidates": "--candidates"})
    out = []
    with opened(file) as stream:
        texts = read_texts(stream)
        first = next(texts, None)
        if first is None:
            raise WireError("no message in it")
        _check(first, ckpt, changes)
        from latentwire.model.receiver import Receiver

        reader = Receiver.from_pretrained(ckpt, receiver, changes)
        for number, wires in enumerate(chain([first], texts), 1):
            (replies,) = reader.answer_batch([wires], [question], max_new_tokens, candidates=candidates)
            answers = [
                {"question": asked, "answer": reply.text, "source": reply.source, "note": reply.note}
                for asked, reply in zip(question, replies, strict=True)
            ]
            out.append({"text": number, "answers": answers})
            if as_json:
                print(json.dumps(out[-1], ensure_ascii=sys.stdout.isatty()), flush=True)
                continue
            if replies[0].note:
                print(f"text {number}: answered from the text in the message: {replies[0].note}", file=sys.stderr)
            for reply in replies:
                print(printable(reply.text), flush=True)
    return out


def _check(wires: tuple[Wire, ...], ckpt: str, changes: dict[str, Any]) -> None:
    """WireError, before any model is loaded, for a message that no reader of the checkpoint can use."""
    from latentwire.checkpoint.index import find_checkpoint, load_config_of, sender_fingerprint

    folder = find_checkpoint(ckpt)
    config, sender = load_config_of(folder, changes), sender_fingerprint(folder)
    for wire in wires:
        reason = wire.misfit(sender, config.encoder.d_z, config.latent_layout.total)
        if reason and not all(other.text for other in wires):
            raise WireError(f"{reason}, and carries no text")
