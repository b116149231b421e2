"""How a question is put to a receiver: the constant head, the tail behind the context, and the answer.

    head: BOS | context (text, vectors or slots) | tail: anchor, question and what is around it | answer

All readers and all baselines use the same head, tail and answer; only the context differs.
"""

from __future__ import annotations

from typing import Any

from latentwire.config.sections.reading import ASKED, AnchorConfig
from latentwire.core.errors import ConfigError
from latentwire.core.unicode import utf8

SPAN = "\nText:"
CONTENT_MARK = "\x02"


def line_ends(tokenizer: Any) -> list[int]:
    """Tokens that end a line behind something else, such as ".\\n" of Llama 3 and Qwen."""
    found = {token: i for token, i in tokenizer.get_vocab().items() if "\n" in token or "\u010a" in token}  # byte-level
    texts = {i: tokenizer.convert_tokens_to_string([token]).lstrip() for token, i in found.items()}
    return [i for i, text in texts.items() if "\n" in text]


class PromptFormat:
    """Token ids of prompts for one tokenizer.

    Plain form: BOS, context, anchor, "\\nQuestion: ...\\nAnswer:" or what else anchor.question says, then " answer\\n".
    With anchor.bos "after", BOS stands between context and anchor, as if the prompt began there, and the head is empty.
    Chat form: the context, anchor and question are the user's turn of the tokenizer's own chat template, and the
    answer is the assistant's, ended by EOS. What the template puts before the context is the head.

    `stop` holds the ids that end an answer of one line, `ends` those that end one of any number of lines.
    """

    def __init__(self, tokenizer: Any, anchor: AnchorConfig, bos_id: int | None):
        self.tokenizer = tokenizer
        self.anchor = anchor.text
        self.question = anchor.question
        self.chat = anchor.chat_template
        bos = [] if bos_id is None else [bos_id]
        self.before_anchor = bos if anchor.bos == "after" else []
        self.end_text = "" if self.chat else "\n"
        eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        if self.chat:
            if not getattr(tokenizer, "chat_template", None):
                raise ConfigError("anchor.chat_template: the tokenizer of a receiver has no chat template")
            rendered = tokenizer.apply_chat_template(
                [{"role": "user", "content": CONTENT_MARK}], tokenize=False, add_generation_prompt=True
            )
            before, shown, self.after = rendered.partition(CONTENT_MARK)
            if not shown or CONTENT_MARK in self.after:
                raise ConfigError("anchor.chat_template: a receiver's template does not show the user's turn just once")
            self.head, self.behind = self._ids(before, template=True), self._ids(self.after, template=True)
            first = self._ids(self.after.lstrip() or "\n", template=True)[0]
            ends = first in tokenizer.all_special_ids or first in tokenizer.get_added_vocab().values()
            self.stop = self.ends = sorted({*eos, *([first] if ends else [])})  # else it may stand in an answer
        else:
            self.head = bos if anchor.bos == "before" else []
            self.after, self.behind = "", []
            self.stop, self.ends = sorted({*eos, self._ids("\n")[-1], *line_ends(tokenizer)}), eos
        self.end_ids = eos if self.chat else []

    def _ids(self, text: str, template: bool = False) -> list[int]:
        """Only in a template of the tokenizer's own are special tokens more than text."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=not template)["input_ids"])

    def opening(self, text: str) -> list[int]:
        """A text that stands between the head and the context."""
        return self._ids(text)

    def tail(self, question: str) -> list[int]:
        """Everything between the context and the answer; DataError for a question that holds half a character."""
        utf8(question, "the question")
        return self.rest(self.question.replace(ASKED, question))

    def rest(self, text: str) -> list[int]:
        """Everything between the context and what is generated, where that is a text of any form."""
        return self.before_anchor + self._ids(self.anchor + text) + self.behind

    def rest_and(self, text: str, continuation: str) -> tuple[list[int], list[int]]:
        """`rest`, and a continuation of it, cut where the tokens of the text alone end.

        White space at the text's end goes to the continuation, as in EleutherAI's harness: tokens begin with it.
        """
        if self.after:
            return self.rest(text), self._ids(continuation)
        kept = text.rstrip()
        before = self.rest(kept)
        whole = self.before_anchor + self._ids(self.anchor + text + continuation)
        return before, whole[len(before) :]

    def span(self) -> list[int]:
        """What stands before the first tokens of a span that is to be copied from the context."""
        return self.before_anchor + self._ids(self.anchor + SPAN)

    def gold(self, text: str) -> list[int]:
        """An answer as it is scored: without what ends it."""
        return self._ids(f" {text}")

    def answer(self, text: str) -> list[int]:
        """A training answer, with what ends it."""
        return self._ids(f" {text}{self.end_text}") + self.end_ids

    def read(self, ids: list[int]) -> str:
        """The answer in generated ids: decoded up to its first line break."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip().split("\n")[0].strip()

    def length(self, ids: list[int]) -> int:
        """How many of generated ids `read` looks at: up to the one that ends the answer, or its first line."""
        end = next((n for n, token in enumerate(ids, 1) if token in self.stop), len(ids))
        while end and "\n" in self.tokenizer.decode(ids[: end - 1], skip_special_tokens=True).lstrip():
            end -= 1
        return end
