"""LLMLingua: the tokens of a text that a small LM finds hardest to predict, read as text.

Jiang et al. 2023, arXiv 2310.05736. The package `llmlingua` chooses; this file gives it a model that is loaded as all
others are, and searches for the longest selection that fits.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from llmlingua import PromptCompressor

from latentwire.backbone.lm import LanguageModel
from latentwire.core.errors import ModelError
from latentwire.model.encoding import ReceiverText
from latentwire.model.receiver import Receiver


def select(receiver: Receiver, text: ReceiverText) -> list[int]:
    """Token ids (head first) of the longest selection of a text that takes no more positions than its latents.

    A text that fits as it is stays whole. ModelError where it is longer than the window of the model that chooses.
    """
    head, ids = text.ids[: text.head_len], text.ids[text.head_len :]
    room = text.latents + receiver.extra_positions
    if len(ids) > room:
        compressor = compressor_of(receiver.config.evaluation.llmlingua_model, str(receiver.lm.device))
        ids = compressor.longest(text.text, receiver.lm, room)
    return head + ids


@lru_cache(maxsize=1)
def compressor_of(model: str, device: str) -> Compressor:
    """The compressor on a model, loaded once: in fp32, where few tokens are equally surprising."""
    return Compressor(LanguageModel.load(model, dtype="float32", device=device))


class Compressor(PromptCompressor):
    """The package's compressor on a model that is already loaded.

    Its own constructor would fetch a tokenizer of OpenAI, only to report prices, and run code from the Hub.
    """

    def __init__(self, lm: LanguageModel):
        self.lm = lm
        self.model, self.tokenizer, self.device = lm.model, lm.tokenizer, lm.device
        self.oai_tokenizer = lm.tokenizer
        self.max_position_embeddings = lm.anatomy.max_positions
        self.use_llmlingua2 = False
        self.cache_bos_num, self.prefix_bos_num = 10, 100  # as in its constructor
        self.surprisal: Any = None
        self.known: dict[tuple[str, str, int], list[int]] = {}

    def get_ppl(self, *args: Any, **kwargs: Any) -> Any:
        """The surprisal of a text's tokens, which is computed once for all the lengths that are tried."""
        if self.surprisal is None:
            self.surprisal = super().get_ppl(*args, **kwargs)
        return self.surprisal

    @torch.no_grad()
    def longest(self, text: str, reader: LanguageModel, room: int) -> list[int]:
        """The longest selection with at most `room` tokens of the model that reads it, by bisection; as its tokens.

        The text is one segment. Cut into the package's segments of 200 tokens, a shorter text or the rest of a longer
        one would stay as it is (microsoft/LLMLingua, issues 196 and 73).
        """
        key = (reader.name, text, room)
        if key not in self.known:
            size = len(self.lm.tokenize_with_offsets(text)[0])
            if size > self.max_position_embeddings:
                raise ModelError(
                    f"evaluation.llmlingua_model: {size} tokens of passage are longer than the window of "
                    f"{self.max_position_embeddings} of {self.lm.name!r}"
                )
            self.surprisal = None

            def chosen(target: int) -> list[int]:
                found = self.compress_prompt(text, target_token=target, iterative_size=size)["compressed_prompt"]
                return reader.tokenize_with_offsets(found)[0]

            low, high = 1, size
            best = chosen(low)[:room]  # a few tokens are always kept
            while low < high:
                middle = (low + high + 1) // 2
                ids = chosen(middle)
                if len(ids) <= room:
                    low, best = middle, ids
                else:
                    high = middle - 1
            self.known[key] = best
        return self.known[key]
