"""Tiny randomly initialised models of every supported family, with tokenizers of their own, built offline."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from latentwire.backbone.lm import LanguageModel

FAMILIES = ("llama", "qwen2", "qwen3", "gemma3")
VOCABULARY = {"llama": 330, "qwen2": 300, "qwen3": 360, "gemma3": 440}

SENTENCES = [
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "Question: Where was the old castle of the northern king built?",
    "Answer: on the hill above the harbour, in the year 1432.",
    "Mira Voss founded the workshop in Talden and sold red lamps there.",
    "A long message is compressed into a short sequence of latents.",
    "What colour is the door of the house in the village of Brannock?",
    "The keeper of the green boat lives in Orlin and plays the harp.",
]


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A fast tokenizer that cuts words in this family's own way; any text survives encoding and decoding.

    As in the real ones, llama and gemma have a BOS and put it before a text unless told not to; the qwens have none.
    """
    has_bos = not family.startswith("qwen")
    special = ("<pad>", "<eos>", "<bos>") if has_bos else ("<pad>", "<eos>")
    build = _metaspace_bpe if family == "gemma3" else _byte_bpe
    core = Tokenizer.from_str(build(family, special))
    names = {"pad_token": "<pad>", "eos_token": "<eos>"} | ({"bos_token": "<bos>"} if has_bos else {})
    if has_bos:
        core.post_processor = processors.TemplateProcessing("<bos> $A", None, [("<bos>", core.token_to_id("<bos>"))])
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


@cache
def _byte_bpe(family: str, special: tuple[str, ...]) -> str:
    """Byte-level BPE; more merges give longer tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return _train(core, family, list(special), pre_tokenizers.ByteLevel.alphabet())


@cache
def _metaspace_bpe(family: str, special: tuple[str, ...]) -> str:
    """Gemma's kind: a visible space, and characters outside the vocabulary as bytes, several tokens a character.

    BPE, not unigram: the unigram trainer does not give the same scores twice.
    """
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    alphabet = sorted(set("".join(SENTENCES)) | set("\n'-" + ascii_letters + digits))
    trained = json.loads(_train(core, family, ["<unk>", *special, *bytes_], alphabet))
    trained["added_tokens"] = [t for t in trained["added_tokens"] if t["content"] not in bytes_]  # no special tokens
    return json.dumps(trained)


def _train(core: Tokenizer, family: str, special: list[str], alphabet: list[str]) -> str:
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY[family], special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(SENTENCES, trainer)
    return core.to_str()


def tiny_model(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of about 100,000 parameters in fp32, scaled so that attention is far from uniform."""
    tokenizer = tiny_tokenizer(family)
    shared: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "initializer_range": 0.15,
    }
    builders: dict[str, Any] = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**(shared | changes))),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**(shared | changes))),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**(shared | changes))),
        "gemma3": lambda: Gemma3ForCausalLM(
            Gemma3TextConfig(
                **(
                    shared
                    | {
                        "num_key_value_heads": 1,
                        "query_pre_attn_scalar": 16,
                        "sliding_window": 64,
                        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                        "rope_parameters": {
                            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                            "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
                        },
                    }
                    | changes
                )
            )
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = builders[family]()
        _roughen(model)
    model.config._attn_implementation = "eager"
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _roughen(model: PreTrainedModel) -> None:
    """Make what is 1 or 0 in a fresh model (norm weights, biases) matter, and attention choose among positions."""
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.add_(0.3 * torch.randn_like(weight))
        if name.endswith("q_norm.weight"):  # where queries are normed, the norm sets how sharp attention is
            weight.add_(0.5)
        elif name.endswith("q_proj.weight"):
            weight.mul_(1.5)


def tiny_lm(family: str, seed: int = 0, **changes: Any) -> LanguageModel:
    """Model and tokenizer behind LatentWire's interface."""
    return LanguageModel(f"tiny-{family}", tiny_model(family, seed, **changes), tiny_tokenizer(family))


@cache
def _wordpiece() -> str:
    """A vocabulary of whole words, and of characters for the others (the trainer does not give the same one twice)."""
    characters = sorted(set(ascii_letters.lower() + digits + ".,:?'-"))
    words = sorted({word for text in SENTENCES for word in re.findall("[a-z]{4,}", text.lower())})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{c}" for c in characters), *words]
    core = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    ids = [(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, ids)
    return core.to_str()


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer that puts [CLS] and [SEP] around a text."""
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_wordpiece()), model_max_length=512, **names)


def tiny_bert(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A bidirectional encoder of about 60,000 parameters in fp32."""
    sizes: dict[str, Any] = {
        "vocab_size": len(bert_tokenizer()),
        "hidden_size": 40,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(BertConfig(**(sizes | changes)), add_pooling_layer=False)
        _roughen(model)
    model.config._attn_implementation = "eager"
    return model.eval().requires_grad_(False)


def save_tiny_bert(folder: Path, seed: int = 0) -> Path:
    """Save a tiny encoder and its tokenizer as a local folder that `TextModel.load` takes."""
    tiny_bert(seed).save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    return folder


def save_tiny(family: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Save a tiny model and its tokenizer as a local folder that `load_model` takes."""
    tiny_model(family, seed, **changes).save_pretrained(folder)
    tiny_tokenizer(family).save_pretrained(folder)
    return folder
