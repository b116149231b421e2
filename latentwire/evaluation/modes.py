"""What a receiver is given in place of the context: the wire, and the baselines it is measured against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from latentwire.backbone.context import Context
from latentwire.core.measures import ADAPTER_OF, RIVAL_MODES
from latentwire.model.encoding import ReceiverText
from latentwire.model.receiver import Receiver
from latentwire.wire.message import Wire


@dataclass(frozen=True)
class Given:
    """Passages as one receiver may read them: texts, and the messages that carry them."""

    texts: Sequence[ReceiverText]
    wires: Sequence[Wire]


Read = Callable[[Receiver, Given], Context]


@dataclass(frozen=True)
class Mode:
    """One column of the comparison: how the context is read, and with which adapter if the receiver has it.

    A mode that `needs_adapter` is left out for a receiver without it. `rival` names the method of another project, by
    which `evaluation.rivals` asks for the mode.
    """

    name: str
    adapter: str | None
    read: Read
    needs_adapter: bool = False
    rival: str | None = None


def _text(receiver: Receiver, given: Given) -> Context:
    return receiver.read_text([t.ids for t in given.texts])


def _replay(receiver: Receiver, given: Given) -> Context:
    return receiver.read_text([t.ids for t in given.texts], as_embeddings=True)


def _anchored(receiver: Receiver, given: Given) -> Context:
    rows = [t.ids[: t.head_len] + receiver.passage_anchor + t.ids[t.head_len :] for t in given.texts]
    return receiver.read_text(rows, as_embeddings=True)


def _budget(receiver: Receiver, given: Given) -> Context:
    return receiver.read_text([t.truncated(receiver.extra_positions) for t in given.texts])


def _nothing(receiver: Receiver, given: Given) -> Context:
    return receiver.read_text([t.ids[: t.head_len] for t in given.texts])


def _latent(receiver: Receiver, given: Given) -> Context:
    return receiver.read_messages([[wire] for wire in given.wires], "latents", [0] * len(given.wires))


def _selected(receiver: Receiver, given: Given) -> Context:
    from latentwire.rivals.llmlingua import select  # an optional package, as below

    return receiver.read_text([select(receiver, text) for text in given.texts])


def _evicted(receiver: Receiver, given: Given) -> Context:
    from latentwire.rivals.kvpress import read_evicted

    return read_evicted(receiver, given.texts)


MODES = {
    name: Mode(name, ADAPTER_OF[name], read, needs_adapter=name == "text_tuned")
    for name, read in {
        "text": _text,
        "text_tuned": _text,
        "latent": _latent,
        "token_budget": _budget,
        "no_context": _nothing,
        "embedding_replay": _replay,
        "embedding_anchor": _anchored,
    }.items()
}
"""In a run with LoRA, the token budget is read with the adapter tuned for it, no context with that of the text."""
RIVALS = {
    name: Mode(name, ADAPTER_OF[name], read, needs_adapter=ADAPTER_OF[name] is not None, rival=rival)
    for rival, read in {"llmlingua": _selected, "kvpress": _evicted}.items()
    for name in RIVAL_MODES
    if name.startswith(rival)
}
"""Each is read by the bare model, with the LoRA tuned on text, and with one tuned on itself where there is one."""
EVERY_MODE = MODES | RIVALS


def modes_for(receiver: Receiver) -> list[Mode]:
    """The modes that are asked for (`evaluation.modes`, `.rivals`) and can be measured on a receiver."""
    own = receiver.config.evaluation
    asked = [MODES[name] for name in own.modes] + [mode for mode in RIVALS.values() if mode.rival in own.rivals]
    return [m for m in asked if not m.needs_adapter or m.adapter in receiver.adapters]
