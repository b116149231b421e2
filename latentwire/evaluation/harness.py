"""A receiver as a model of EleutherAI's harness (lm-evaluation-harness, PyPI lm_eval), the context passed as latents.

A request of the harness is one string. Which part of it is the context is known from the document that it was made of:
SQuAD, DROP, BoolQ, RACE, CoQA and others keep it in a field of its own. That field's text is looked for in the string,
and exactly it goes through sender, bytes and reader. All before it (a title, worked examples) and behind it (question,
choices) is read as text in its place, so no task needs to be changed.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from tqdm import tqdm

from latentwire.backbone.context import Context
from latentwire.backbone.padding import pad_left
from latentwire.core.batches import batched
from latentwire.core.errors import ConfigError, DataError
from latentwire.evaluation.modes import MODES
from latentwire.model.receiver import Receiver
from latentwire.model.sender import Sender
from latentwire.wire.message import Wire

CONTEXT_FIELDS = (
    "context", "passage", "article", "story", "paragraph", "support", "document", "document_str", "abstract",
    "flores_passage",
)  # fmt: skip
"""Where documents of the harness's tasks keep their context; the first one that is in the prompt is taken."""
HARNESS_MODES = ("text", "text_tuned", "latent", "no_context")
"""The modes of `evaluation.modes` that can be measured in the harness."""
MAX_NEW_TOKENS = 256
"""Longest answer where a task does not say: the harness's own number."""


@dataclass(frozen=True)
class Prompt:
    """A request's string in three parts. Where no passage was found in it, all of it is `rest`."""

    opening: str
    passage: str
    rest: str


def split_prompt(text: str, doc: Any, fields: Sequence[str] = CONTEXT_FIELDS) -> Prompt:
    """Find the passage of a document in the prompt that was made of it.

    The last place counts, since worked examples stand before it. Of the white space between opening and passage,
    spaces are left out: in a text they would be part of the passage's first token. A passage at the very end is not
    taken, for there would be nothing to read behind the message.
    """
    for field in fields:
        value = doc.get(field) if isinstance(doc, dict) else None
        passage = value.strip() if isinstance(value, str) else ""
        start = text.rfind(passage)
        if passage and start >= 0 and text[start + len(passage) :].strip():
            return Prompt(text[:start].rstrip(" "), passage, text[start + len(passage) :])
    return Prompt("", "", text)


class Messages:
    """Messages of passages by text. Each passage is encoded once, and what is read is what comes out of the bytes."""

    def __init__(self, sender: Sender, codec: str | None = None):
        self.sender, self.codec = sender, codec
        self.bytes: dict[str, int] = {}
        self._wires: dict[str, list[Wire]] = {}

    def encode(self, passages: Iterable[str]) -> None:
        """Encode those that are not known yet; one that is too long for the sender becomes several messages."""
        new = [passage for passage in dict.fromkeys(passages) if passage not in self._wires]
        for passage, wires in zip(new, self.sender.encode_long(new, self.codec), strict=True):
            data = [wire.to_bytes() for wire in wires]
            self.bytes[passage] = sum(map(len, data))
            self._wires[passage] = [Wire.from_bytes(message) for message in data]

    def __getitem__(self, passage: str) -> list[Wire]:
        return self._wires[passage]


@dataclass(frozen=True)
class Row:
    """A request as a receiver is given it.

    before: token ids that are read first, once for all rows that share them and the passage, whose message follows
    (none where it is ""). tail: the ids behind it. answer: the ids that are scored. new: the most that are generated.
    """

    before: tuple[int, ...]
    passage: str
    tail: list[int]
    answer: list[int]
    new: int


@dataclass(frozen=True)
class Read:
    """What a request cost: positions as text and as it was read; bytes of the message and of the passage, 0 where no
    passage was found; and whether its beginning was cut off, because it was longer than the model's window.

    What was cut off before a message counts in neither of the positions.
    """

    text_positions: int
    positions: int
    wire: int
    utf8: int
    cut: bool


class HarnessLM(LM):  # type: ignore[misc]
    """One receiver in one mode ("text", "text_tuned", "latent", "no_context") as the harness sees a model.

    Text is read as the harness's own `hf` model reads it, BOS first. `reads` tells by task what requests cost.
    A prompt too long for the model's window loses tokens from its beginning, BOS excepted; where latents and what
    follows them alone are too long, that is a ModelError, before anything is computed. So is a WireError where the
    messages are another sender's.
    """

    def __init__(
        self,
        receiver: Receiver,
        mode: str,
        messages: Messages,
        fields: Sequence[str] = CONTEXT_FIELDS,
        *,
        batch_size: int = 8,
        quiet: bool = False,
    ):
        super().__init__()
        if mode not in HARNESS_MODES:
            raise ConfigError(f"mode {mode!r}: the harness can measure {', '.join(HARNESS_MODES)}")
        self.receiver, self.mode, self.messages = receiver, MODES[mode], messages
        self.fields, self.batch_size, self.quiet = fields, batch_size, quiet
        self.reads: dict[str, list[Read]] = defaultdict(list)

    # ---- what the harness asks for --------------------------------------------------------------------------------

    @torch.no_grad()
    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-probability in nats of each continuation, and whether it is what greedy decoding would give."""
        rows = self._rows(requests, [request.args[1] for request in requests], [0] * len(requests))
        found: dict[int, tuple[float, bool]] = {}
        with self.receiver.using(self.mode.adapter):
            for batch in self._batches(rows, "scored"):
                chosen = [rows[i] for i in batch]
                scores = self.receiver.score(self._context(chosen), [(row.tail, row.answer) for row in chosen])
                values = zip((-scores.nll).tolist(), scores.all_correct.tolist(), strict=True)
                found |= dict(zip(batch, values, strict=True))
        return [found[i] for i in range(len(rows))]

    @torch.no_grad()
    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers, each up to the first of its request's stop strings."""
        asked = [normalize_gen_kwargs(dict(request.args[1]), MAX_NEW_TOKENS) for request in requests]
        for request, settings in zip(requests, asked, strict=True):
            if settings["do_sample"]:
                raise DataError(f"--tasks: {request.task_name} asks for sampled answers, and answers here are greedy")
        rows = self._rows(requests, [""] * len(requests), [settings["max_gen_toks"] for settings in asked])
        found: dict[int, str] = {}
        with self.receiver.using(self.mode.adapter):
            for batch in self._batches(rows, "answered"):
                ends = [asked[i]["until"] for i in batch]
                texts = self._generate([rows[i] for i in batch], ends)
                for i, text, until in zip(batch, texts, ends, strict=True):
                    found[i] = postprocess_generated_text(text, until, None)
        return [found[i] for i in range(len(rows))]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Refused: where a whole text is scored, none of it is a context."""
        raise DataError(f"--tasks: {requests[0].task_name} scores whole texts, so there is no context to send")

    # ---- requests as token ids ------------------------------------------------------------------------------------

    def _rows(self, requests: Sequence[Instance], continuations: Sequence[str], new: Sequence[int]) -> list[Row]:
        prompts = [split_prompt(request.args[0], request.doc, self.fields) for request in requests]
        if self.mode.name == "latent":
            self.messages.encode(prompt.passage for prompt in prompts if prompt.passage)
        rows = []
        for request, prompt, continuation, most in zip(requests, prompts, continuations, new, strict=True):
            row, read = self._row(request.args[0], prompt, continuation, most)
            rows.append(row)
            self.reads[request.task_name or ""].append(read)
        return rows

    def _row(self, text: str, prompt: Prompt, continuation: str, new: int) -> tuple[Row, Read]:
        form, window = self.receiver.prompt, self.receiver.lm.anatomy.max_positions
        head = form.head
        ids, answer = self._pair(text, continuation, new)
        utf8, as_text = len(prompt.passage.encode()), len(head) + len(ids)
        if self.mode.name == "latent" and prompt.passage:
            wires = self.messages[prompt.passage]
            self.receiver.why_text(wires)  # they carry none, so it is an error where they are not for this reader
            tail, answer = self._pair(prompt.rest, continuation, new)
            opening = form.opening(prompt.opening)
            read = len(head) + self.receiver.message_positions(wires) + len(tail)
            self.receiver.check_length(read + len(answer) + new)
            cut = max(0, len(opening) + read + len(answer) + new - window)
            kept = opening[cut:]
            cost = Read(as_text - cut, len(kept) + read, self.messages.bytes[prompt.passage], utf8, cut > 0)
            return Row(tuple(kept), prompt.passage, tail, answer, new), cost
        if self.mode.name == "no_context":
            ids, answer = self._pair(prompt.opening + prompt.rest, continuation, new)
        bos = len(form.before_anchor)  # where it is not in the head
        start, rest = [*head, *ids[:bos]], ids[bos:]
        room = max(1, window - len(start) - len(answer) - new)
        kept = [*start, *rest[-room:]]
        return Row(tuple(kept[:-1]), "", kept[-1:], answer, new), Read(as_text, len(kept), 0, utf8, len(rest) > room)

    def _pair(self, text: str, continuation: str, new: int) -> tuple[list[int], list[int]]:
        form = self.receiver.prompt
        return (form.rest(text), []) if new else form.rest_and(text, continuation)

    def _batches(self, rows: Sequence[Row], done: str) -> Iterator[list[int]]:
        """Numbers of rows. Rows with the same context come together, and texts of about one length, to pad little.

        All messages of a batch stand behind the same opening.
        """

        def kind(i: int) -> tuple[bool, tuple[int, ...]]:
            return bool(rows[i].passage), rows[i].before if rows[i].passage else ()

        order = sorted(
            range(len(rows)),
            key=lambda i: (*kind(i), rows[i].new, len(rows[i].before), rows[i].before, rows[i].passage),
        )
        label = f"{self.receiver.name} {self.mode.name}: requests {done}"
        with tqdm(total=len(rows), desc=label, disable=self.quiet) as bar:
            for _, group in groupby(order, key=lambda i: (kind(i), rows[i].new)):
                for batch in batched(group, self.batch_size):
                    yield batch
                    bar.update(len(batch))

    # ---- reading and answering ------------------------------------------------------------------------------------

    def _context(self, rows: Sequence[Row]) -> Context:
        """What the receiver has read before each row's tail."""
        runs = [list(run) for _, run in groupby(rows, key=lambda row: (row.before, row.passage))]
        firsts = [run[0] for run in runs]
        if rows[0].passage:
            longest = [max(len(row.tail) + len(row.answer) + row.new for row in run) for run in runs]
            messages = [self.messages[row.passage] for row in firsts]
            context = self.receiver.read_messages(messages, "latents", longest, rows[0].before)
        else:
            context = self.receiver.read_text([list(row.before) for row in firsts])
        return context.repeat([len(run) for run in runs])

    def _generate(self, rows: Sequence[Row], ends: Sequence[Sequence[str]]) -> list[str]:
        lm, form = self.receiver.lm, self.receiver.prompt

        def decoded(new: torch.Tensor) -> list[str]:
            return [lm.tokenizer.decode(ids, skip_special_tokens=True) for ids in new.tolist()]

        def ended(new: torch.Tensor) -> list[bool]:
            return [any(end in text for end in until if end) for text, until in zip(decoded(new), ends, strict=True)]

        context = self._context(rows)
        ids, mask = pad_left([row.tail for row in rows], lm.pad_id, lm.device)
        with self.receiver.reading(context):
            return decoded(lm.generate(context, ids, mask, rows[0].new, form.ends, ended))

    # ---- what it cost ---------------------------------------------------------------------------------------------

    def cost(self) -> dict[str, dict[str, Any]]:
        """By task: requests, how many of them had a passage that was sent, and means a request of those that had.

        `compression` is the ratio of the mean positions: all that the receiver was given counts, the text around the
        passage and the question included.
        """
        return {task: _cost(reads) for task, reads in self.reads.items()}


def _cost(reads: Sequence[Read]) -> dict[str, Any]:
    sent = [read for read in reads if read.wire]
    out: dict[str, Any] = {
        "requests": len(reads),
        "with_passage": sum(read.utf8 > 0 for read in reads),
        "compressed": len(sent),
        "cut": sum(read.cut for read in reads),
        "positions": None,
        "compression": None,
        "bytes": None,
    }
    if sent:
        text, latent = (statistics.fmean(n) for n in zip(*((r.text_positions, r.positions) for r in sent), strict=True))
        wire, utf8 = (statistics.fmean(n) for n in zip(*((r.wire, r.utf8) for r in sent), strict=True))
        out |= {"positions": {"text": text, "latent": latent}, "compression": text / latent}
        out |= {"bytes": {"wire": wire, "utf8": utf8}}
    return out
