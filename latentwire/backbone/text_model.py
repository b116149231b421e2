"""Pretrained models that are only read from: a tokenizer, and a model's last hidden states.

Any Transformers model that `AutoModel` loads will do, whether an encoder (BERT, MiniLM of sentence-transformers) or a
causal LM: no family has to be known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from latentwire.backbone.load import (
    bos_of,
    load_model,
    load_tokenizer,
    resolve_attention,
    resolve_dtype,
    tokenize_with_offsets,
)
from latentwire.backbone.padding import pad_right
from latentwire.config.sections.inputs import ModelConfig
from latentwire.core.errors import ModelError


class TextTokenizer:
    """A fast tokenizer, and the special tokens that its model expects around a text.

    frame: what the tokenizer itself puts before and behind a text. Where it puts nothing before it, BOS stands there,
    or EOS for families without BOS: the first position of a causal LM is an attention sink.
    """

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.is_fast:
            raise ModelError(f"model {name!r}: a fast tokenizer is needed (windows are aligned by character offsets)")
        self.name = name
        self.tokenizer = tokenizer

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        framed = self.tokenizer("a")["input_ids"]
        start = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), None)
        if start is None:
            raise ModelError(
                f"model {self.name!r}: its tokenizer splits a text otherwise with special tokens around it"
            )
        before, behind = framed[:start], framed[start + len(bare) :]
        if not before:
            first = bos_of(self.tokenizer)
            before = [] if first is None else [first]
        return before, behind

    @classmethod
    def load(cls, name: str) -> TextTokenizer:
        """Load by built-in alias, Hub id, local folder or .gguf file."""
        return cls(name, load_tokenizer(name))

    def tokenize_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """See `latentwire.backbone.load.tokenize_with_offsets`."""
        return tokenize_with_offsets(self.tokenizer, text)


class TextModel(TextTokenizer):
    """A frozen model that turns texts into hidden states."""

    def __init__(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase):
        super().__init__(name, tokenizer)
        if model.config.is_encoder_decoder:
            raise ModelError(f"encoder.model: {name!r} is an encoder-decoder; an encoder or a causal LM is needed")
        self.model = model

    @classmethod
    def load(cls, name: str, config: ModelConfig, device: str) -> TextModel:  # type: ignore[override]
        """Load by built-in alias, Hub id, local folder or .gguf file; every parameter is frozen."""
        model = load_model(
            name,
            dtype=resolve_dtype(config.dtype, device),
            attn_implementation=resolve_attention(config.attn_implementation, device),
            device=device,
            kind=AutoModel,
        )
        return cls(name, model, load_tokenizer(name))

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)

    @property
    def max_positions(self) -> int:
        """The longest text in tokens, special ones included: the less of what the model and its tokenizer say."""
        return min(getattr(self.model.config, "max_position_embeddings", 1 << 30), self.tokenizer.model_max_length)

    @torch.no_grad()
    def states(self, rows: Sequence[list[int]]) -> list[Tensor]:
        """Last hidden states of framed ids, without those of the frame: (T_i, hidden_size) each, fp32."""
        ids, mask = pad_right(rows, self.tokenizer.pad_token_id or 0, self.device)
        states = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state.float()
        before, behind = map(len, self.frame)
        return [state[before : len(row) - behind] for state, row in zip(states, rows, strict=True)]
