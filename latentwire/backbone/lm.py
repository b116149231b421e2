"""One interface to a frozen causal LM.

Whatever a receiver reads in place of the context (the text itself, vectors at the input, slots in every layer) becomes
a `Context`: a key/value cache with a mask. Scoring and generation then know only contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from latentwire.backbone.anatomy import FULL, SLIDING, decoder_layers, describe
from latentwire.backbone.context import Context, cache_of, rearranged
from latentwire.backbone.hooks import KeysValues, attention, keys_values, outputs_of
from latentwire.backbone.load import (
    DeviceMap,
    bos_of,
    load_model,
    load_tokenizer,
    resolve_attention,
    resolve_dtype,
)
from latentwire.backbone.padding import positions_of
from latentwire.backbone.rotary import rope, rotate
from latentwire.backbone.text_model import TextTokenizer
from latentwire.backbone.turns import Turns

StopWhen = Callable[[Tensor], Sequence[bool]]
"""Sees all new tokens (batch, new) after each one that is generated; says which rows need no more of them."""


class _Stopping(StoppingCriteria):
    def __init__(self, stop_when: StopWhen, start: int):
        self.stop_when, self.start = stop_when, start

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.tensor(self.stop_when(input_ids[:, self.start :]), dtype=torch.bool, device=input_ids.device)


class _Scoring(LogitsProcessor):
    def __init__(self, scores: list[Tensor]):
        self.scores = scores

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.scores.append(scores.amax(-1) - scores.logsumexp(-1))
        return scores


class LanguageModel(TextTokenizer):
    """A causal LM with its tokenizer. With `turns`, it shares the memory of its device with other models."""

    def __init__(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, turns: Turns | None = None
    ):
        super().__init__(name, tokenizer)
        self.model = model
        self.device = model.device
        self.turns = turns
        self.anatomy = describe(model.config, name)
        # A model's own defaults (repetition penalties and the like) would leak into what is asked for: greedy answers.
        model.generation_config = GenerationConfig()
        # `generate` gives the head a slice of its prefill, for which torch would copy the head's weights once a row.
        model.get_output_embeddings().register_forward_pre_hook(
            lambda head, args: (args[0].clone(memory_format=torch.contiguous_format), *args[1:])
        )

    @classmethod
    def load(  # type: ignore[override]
        cls,
        name: str,
        *,
        dtype: str = "auto",
        attn_implementation: str = "auto",
        device: str = "cpu",
        load_4bit: bool = False,
        device_map: DeviceMap | None = None,
        turns: Turns | None = None,
    ) -> LanguageModel:
        """Load by built-in alias, Hub id, local folder or .gguf file; every parameter is frozen."""
        if turns is not None:
            turns.release()  # there need not be room for two
        model = load_model(
            name,
            dtype=resolve_dtype(dtype, device),
            attn_implementation=resolve_attention(attn_implementation, device),
            device=device,
            load_4bit=load_4bit,
            device_map=device_map,
        )
        lm = cls(name, model, load_tokenizer(name), turns)
        lm.take_turn()
        return lm

    def take_turn(self) -> None:
        """Have the weights on the device, where models take turns there."""
        if self.turns is not None:
            self.turns.take(self.model, self.device)

    def layer_device(self, index: int) -> torch.device:
        """Where a decoder block computes: `device`, unless the model is spread over several."""
        hook = getattr(decoder_layers(self.model)[index], "_hf_hook", None)
        found = getattr(hook, "execution_device", None)
        return self.device if found is None else torch.device(found)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    @property
    def bos_id(self) -> int | None:
        """See `bos_of`."""
        return bos_of(self.tokenizer)

    @property
    def pad_id(self) -> int:
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        return 0

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """Special tokens before and behind a text that is read for its hidden states."""
        return ([] if self.bos_id is None else [self.bos_id]), []

    def autocast(self) -> torch.autocast:
        """bf16 compute for what is kept in fp32 beside a bf16 model (LoRA); nothing for an fp32 model."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def _decode(self, **inputs: Any) -> Tensor:
        self.take_turn()
        with self.autocast():
            return self.model.get_decoder()(**inputs).last_hidden_state.to(self.device)

    # ---- plain forward passes -------------------------------------------------------------------------------------

    def embed(self, ids: Tensor) -> Tensor:
        """What the first layer sees of token ids (batch, tokens): (batch, tokens, hidden_size)."""
        self.take_turn()
        return self.model.get_input_embeddings()(ids).to(self.device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits in fp32 of final hidden states (..., hidden_size): (..., vocabulary)."""
        self.take_turn()
        logits = self.model.get_output_embeddings()(hidden).to(self.device).float()
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def prefill(self, mask: Tensor, *, ids: Tensor | None = None, embeds: Tensor | None = None) -> Context:
        """Read left-padded token ids (batch, K) or embeddings (batch, K, hidden_size); mask is (batch, K)."""
        cache = DynamicCache()
        if mask.shape[1]:
            given: dict[str, Any] = {"input_ids": ids} if embeds is None else {"inputs_embeds": embeds.to(self.dtype)}
            self._decode(
                **given,
                attention_mask=self._attention_mask(mask[:, None, :] & _causal(mask), positions_of(mask)),
                position_ids=positions_of(mask),
                past_key_values=cache,
                use_cache=True,
            )
        return Context(cache, mask.bool())

    def append(self, context: Context, slots: Tensor) -> Context:
        """A context with constant or generated slots behind it.

        slots: (batch, n, layers, kv_heads, 2, head_dim), keys before RoPE; they take the n positions after the context.
        """
        batch, n = slots.shape[:2]
        mask = torch.cat([context.mask, context.mask.new_ones(batch, n)], 1)
        rope = self.rope(positions_of(mask)[:, -n:])
        layers = []
        for i, (layer, (cos, sin)) in enumerate(zip(context.cache.layers, rope, strict=True)):
            keys, values = (t.transpose(1, 2) for t in slots[:, :, i].unbind(3))  # (batch, kv_heads, n, head_dim)
            keys = rotate(keys.float(), cos[:, None], sin[:, None]).to(layer.keys)
            layers.append((torch.cat([layer.keys, keys], 2), torch.cat([layer.values, values.to(layer.values)], 2)))
        return Context(cache_of(layers), mask, context.latents, context.latent_mask)

    def own_slots(self, ids: Sequence[int]) -> Tensor:
        """The model's own keys (before RoPE) and values of some tokens: (n, layers, kv_heads, 2, head_dim)."""
        row = torch.tensor([list(ids)], device=self.device)
        kv = self.keys_values(row, torch.ones_like(row))
        return torch.stack([torch.stack([k[0], v[0]], 2) for k, v in zip(kv.keys, kv.values, strict=True)], 1)

    def continue_from(self, context: Context, ids: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
        """Final hidden states (batch, Q, hidden_size) of tokens (batch, Q) read after a context.

        With `segments` (batch, Q), a row holds several questions packed one behind the other: each sees the context
        and itself, and its positions start right after the context. The context's cache is extended in place.
        """
        if segments is None:
            segments = torch.ones_like(ids)
        same = (segments[:, :, None] == segments[:, None, :]) & mask[:, None, :].bool() & _causal(ids)
        known = context.mask[:, None, :].expand(-1, ids.shape[1], -1)
        start = context.mask.sum(1, keepdim=True)
        positions = start + same.sum(-1).sub(1).clamp(min=0)
        return self._decode(
            input_ids=ids,
            attention_mask=self._attention_mask(
                torch.cat([known, same], 2), torch.cat([positions_of(context.mask), positions], 1)
            ),
            position_ids=positions,
            past_key_values=context.cache,
            use_cache=True,
        )

    def read_on(self, context: Context, ids: Tensor, mask: Tensor) -> tuple[Context, Tensor]:
        """The context with left-padded tokens (batch, Q) behind it, all padding moved before both, and the final hidden
        states of the tokens (batch, Q, hidden_size). The given context's cache is used up."""
        hidden = self.continue_from(context, ids, mask)
        seen = torch.cat([context.mask, mask.bool()], 1)
        order = seen.int().argsort(dim=1, stable=True)
        cache = rearranged(context.cache, lambda t: t.gather(2, order.to(t.device)[:, None, :, None].expand_as(t)))
        return Context(cache, seen.gather(1, order), context.latents, context.latent_mask), hidden

    @torch.no_grad()
    def generate(
        self,
        context: Context,
        ids: Tensor,
        mask: Tensor,
        max_new_tokens: int,
        stop: list[int],
        stop_when: StopWhen | None = None,
        scores: list[Tensor] | None = None,
    ) -> Tensor:
        """Greedy answers (batch, new) to left-padded questions (batch, Q), by Transformers' own `generate`.

        scores: a list that gets the log-probabilities (batch,) of each new token.
        """
        if self.anatomy.sliding_window is not None and not mask.all():
            # `generate` counts sliding windows in places of the cache: padding behind the context would count too.
            context, _ = self.read_on(context, ids[:, :-1], mask[:, :-1])
            ids, mask = ids[:, -1:], mask[:, -1:]
        criteria = StoppingCriteriaList([] if stop_when is None else [_Stopping(stop_when, ids.shape[1])])
        processors = LogitsProcessorList([] if scores is None else [_Scoring(scores)])
        self.take_turn()
        with self.autocast():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.cat([context.mask.long(), mask.long()], 1),
                past_key_values=context.cache,
                generation_config=GenerationConfig(
                    max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stop, pad_token_id=self.pad_id
                ),
                stopping_criteria=criteria,
                logits_processor=processors,
            )
        return out[:, ids.shape[1] :]

    # ---- inside the layers ----------------------------------------------------------------------------------------

    def outputs_of(self, layers: Iterable[int]) -> AbstractContextManager[dict[int, Tensor]]:
        """See `latentwire.backbone.hooks.outputs_of`."""
        return outputs_of(self.model, layers)

    def attention(self) -> AbstractContextManager[list[Tensor]]:
        """See `latentwire.backbone.hooks.attention`."""
        return attention(self.model)

    def final_states(self, ids: Tensor, mask: Tensor, *, bidirectional: bool = False) -> Tensor:
        """Final hidden states of right-padded ids (batch, T): (batch, T, hidden_size).

        bidirectional: each token also sees those behind it, in sliding layers as far as those before it.
        """
        seen: Any = mask.long()
        if bidirectional:
            seen = self._attention_mask(mask[:, None].bool().expand(-1, ids.shape[1], -1), positions_of(mask))
        return self._decode(input_ids=ids, attention_mask=seen, use_cache=False)

    def surprisal(self, final: Tensor, ids: Tensor) -> Tensor:
        """-log p in nats of each of ids (..., T) behind those before it, from the final hidden states (..., T,
        hidden_size); infinite for the first one. The logits of a few hundred positions at a time are in memory."""
        before, wanted = final[..., :-1, :].flatten(0, -2), ids[..., 1:].flatten()
        with self.autocast():
            parts = [
                F.cross_entropy(self.logits(states), tokens, reduction="none")
                for states, tokens in zip(before.split(256), wanted.split(256), strict=True)
            ]
        nats = torch.cat(parts).view(*ids.shape[:-1], ids.shape[-1] - 1)
        return F.pad(nats, (1, 0), value=float("inf"))

    def truncate(self, layers: int) -> None:
        """Keep only the first `layers` blocks: all that a sender needs."""
        decoder = self.model.get_decoder()
        decoder.layers = decoder.layers[:layers]

    @contextmanager
    def first_layers(self, layers: int) -> Iterator[None]:
        """Run only the first `layers` blocks for a while."""
        decoder = self.model.get_decoder()
        whole = decoder.layers
        self.truncate(layers)
        try:
            yield
        finally:
            decoder.layers = whole

    def keys_values(self, ids: Tensor, mask: Tensor) -> KeysValues:
        """Keys before RoPE and values of right-padded ids (batch, T), with gradients when they are on."""
        with keys_values(self.model, self.anatomy, self.device) as out:
            self._decode(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        return out

    def first_values(self, ids: Tensor) -> Tensor:
        """Values of tokens (n,) in the first layer, which depend on nothing else: (n, kv_heads, head_dim)."""
        block: Any = decoder_layers(self.model)[0]
        embeddings = self.embed(ids).to(self.layer_device(0))  # only whole blocks fetch their inputs themselves
        with self.autocast():
            values = getattr(block.self_attn, self.anatomy.source.value)(block.input_layernorm(embeddings))
        return values.view(len(ids), self.anatomy.kv_heads, self.anatomy.head_dim).to(self.device)

    def rope(self, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """See `latentwire.backbone.rotary.rope`."""
        return rope(self.model.get_decoder().rotary_emb, self.anatomy, positions)

    def _attention_mask(self, allowed: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """Additive mask from allowed (batch, Q, K); sliding layers also forget what lies too far back.

        positions: (batch, K) of all keys, the queries being the last Q of them.
        """
        queries, keys = allowed.shape[-2:]
        allowed = allowed | torch.eye(keys, dtype=torch.bool, device=allowed.device)[keys - queries :]
        full = self._additive(allowed)
        if self.anatomy.sliding_window is None:
            return full
        distance = positions[:, keys - queries :, None] - positions[:, None, :]
        near = distance.abs() < self.anatomy.sliding_window
        return {FULL: full, SLIDING: self._additive(allowed & near)}

    def _additive(self, allowed: Tensor) -> Tensor:
        mask = torch.zeros(allowed.shape, dtype=self.dtype, device=allowed.device)
        return mask.masked_fill_(~allowed, torch.finfo(self.dtype).min)[:, None]


def _causal(like: Tensor) -> Tensor:
    """(1, n, n), True where a row may see a column, for (batch, n)."""
    n = like.shape[1]
    return torch.ones(1, n, n, dtype=torch.bool, device=like.device).tril()
