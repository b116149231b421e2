"""The sender: text to latents."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentwire.backbone.padding import row_mask
from latentwire.config.schema import Config
from latentwire.config.sections.features import LoraConfig
from latentwire.core.batches import batched
from latentwire.core.errors import ModelError
from latentwire.diagnostics.tensors import hand_over
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.encoder.base import Encoder
from latentwire.encoder.refiner import LatentRefiner
from latentwire.encoder.text import SenderText
from latentwire.features.lora import LoRA
from latentwire.model.chunks import split_text
from latentwire.model.encoding import encode_for_sender
from latentwire.wire.codebook import Codebook
from latentwire.wire.codecs import Codec, LearnedCodec, parse_codec
from latentwire.wire.default import default_codec
from latentwire.wire.message import Wire

BATCH = 8
"""Texts that are encoded together."""


class Sender:
    """An encoder, and the refiner of its latents if there is one. One encoding of a text serves all receivers and all
    questions.

    `fingerprint` names the checkpoint that it was loaded from; its messages carry it. `codec` is what they are encoded
    with unless another one is asked for, `codebooks` those of the learned codecs by name, `chunk` the tokens of a
    longer text that go into one message.
    """

    def __init__(self, encoder: Encoder, config: Config):
        self.config = config.encoder
        self.fingerprint: bytes | None = None
        self.codec = default_codec(config)
        self.codebooks: dict[str, Codebook] = {}
        self.chunk = config.data.max_context_tokens
        self.layout = config.latent_layout
        self.device = encoder.device
        self.encoder = encoder.to(self.device)
        self.refiner = LatentRefiner(config).to(self.device) if config.features.use_latent_refiner else None
        self.lora: LoRA | None = None
        if isinstance(encoder, BackboneEncoder) and config.features.use_sender_lora:
            self.lora = _adapt(encoder, config.lora)

    @property
    def parts(self) -> dict[str, nn.Module | LoRA]:
        """What is trained of it, by name."""
        parts = {"encoder": self.encoder, "latent_refiner": self.refiner, "lora": self.lora}
        return {name: part for name, part in parts.items() if part is not None}

    def tokenize(self, text: str) -> SenderText:
        """A text of any length as token ids and windows."""
        own, choose = self.config, self.encoder.choose if self.config.keep else None
        across = own.keep_from == "text"
        return encode_for_sender(self.encoder.source, text, own.window, own.latent_len, self.layout, choose, across)

    def prepare(self, text: str) -> SenderText:
        """Tokenize a text and cut it into windows; ModelError where the sender cannot read it."""
        prepared = self.tokenize(text)
        refusal = self.refusal(prepared)
        if refusal:
            raise ModelError(refusal)
        return prepared

    def refusal(self, text: SenderText) -> str | None:
        """Why the sender cannot read a text, in one line that names what to change; None where it can."""
        if not text.tokens:
            return f"text: {text.text!r} holds no token, so there is nothing to send"
        return self.encoder.too_long(text)

    def features(self, texts: Sequence[SenderText]) -> list[Tensor]:
        """What the frozen part of the encoder makes of each text, in the form of its `features`; once is enough."""
        return self.encoder.features(texts)

    def latents_of(self, texts: Sequence[SenderText]) -> tuple[Tensor, Tensor]:
        """Latents of texts: (batch, M, d_z) right-padded, fp32, and counts (batch,)."""
        return self.latents(self.features(texts), [text.latents for text in texts])

    def latents(self, features: Sequence[Tensor], counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """`latents_of` for texts given by their features and by `SenderText.latents` of each."""
        for one in features:
            hand_over("features", one)
        z = self.encoder(features, counts)
        if self.refiner is not None:
            z = self.refiner(z, counts)
        hand_over("z", z, row_mask(counts, device=z.device))
        return z, torch.tensor(counts, device=self.device)

    # ---- messages -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path, changes: Mapping[str, Any] | None = None) -> Sender:
        """The sender of a checkpoint and nothing else of it.

        checkpoint: a folder, a run's folder (its last checkpoint), or a repository on the Hub: "org/name" or
        "org/name@revision", of which only the sender's files are fetched, once.
        changes: dotted keys of the configuration with other values, such as {"system.device": "cpu"}.
        """
        from latentwire.model.pretrained import load_sender

        return load_sender(checkpoint, changes)

    def encode(self, text: str, codec: str | Codec | None = None, *, with_text: bool = False) -> Wire:
        """The message of one text; with the text itself beside the latents if asked for."""
        return self.encode_batch([text], codec, with_text=with_text)[0]

    def encode_batch(
        self, texts: Sequence[str], codec: str | Codec | None = None, *, with_text: bool = False
    ) -> list[Wire]:
        """One message for each text; ModelError where one is longer than the sender can read."""
        return self.messages([self.prepare(text) for text in texts], codec, with_text=with_text)

    def encode_stream(
        self,
        pieces: Iterable[str],
        codec: str | Codec | None = None,
        *,
        with_text: bool = False,
        chunk: int | None = None,
    ) -> Iterator[Wire]:
        """The messages of one text of any length, which may come in pieces: one for each chunk of so many tokens.

        Chunks end between lines, sentences or words where they can, and do not know of each other. Each message but
        the last says that more follow.
        """
        source = self.encoder.source
        chunks = split_text(pieces, chunk or self.chunk, lambda text: source.tokenize_with_offsets(text)[1])
        ahead = next(chunks, "")
        while ahead:
            text, ahead = ahead, next(chunks, "")
            yield from self.messages([self.prepare(text)], codec, with_text=with_text, more=[bool(ahead)])

    def encode_long(
        self,
        texts: Sequence[str],
        codec: str | Codec | None = None,
        *,
        with_text: bool = False,
        chunk: int | None = None,
    ) -> list[list[Wire]]:
        """`encode_stream` for each of several texts, all chunks of all texts encoded in batches."""
        tokens = self.encoder.source.tokenize_with_offsets
        chunks = [list(split_text([text], chunk or self.chunk, lambda part: tokens(part)[1])) for text in texts]
        prepared = [self.prepare(part) for parts in chunks for part in parts]
        more = [n < len(parts) for parts in chunks for n in range(1, len(parts) + 1)]
        wires = iter(self.messages(prepared, codec, with_text=with_text, more=more))
        return [list(islice(wires, len(parts))) for parts in chunks]

    @torch.no_grad()
    def messages(
        self,
        prepared: Sequence[SenderText],
        codec: str | Codec | None = None,
        *,
        with_text: bool = False,
        more: Sequence[bool] = (),
    ) -> list[Wire]:
        """`encode_batch` for texts that are tokenized already; more[i]: text i goes on in the next message."""
        out: list[Wire] = []
        codec = self.ready(codec or self.codec)
        follows = iter(more or [False] * len(prepared))
        for batch in batched(prepared, BATCH):
            z, counts = self.latents_of(batch)
            for text, row, count in zip(batch, z.cpu(), counts.tolist(), strict=True):
                beside = text.text if with_text else None
                out.append(Wire.of(row[:count], codec, text=beside, sender=self.fingerprint, more=next(follows)))
        return out

    def ready(self, codec: str | Codec) -> Codec:
        """A codec with all that it takes to encode; WireError where its codebook is not part of the checkpoint."""
        codec = parse_codec(codec) if isinstance(codec, str) else codec
        if isinstance(codec, LearnedCodec) and codec.book is None:
            return codec.with_book(self.codebooks.get(codec.name))
        return codec


def _adapt(encoder: BackboneEncoder, config: LoraConfig) -> LoRA:
    """Give an encoder's model LoRA, in the layers up to the deepest one that is read."""
    layers = min(config.first_n or encoder.deepest, encoder.deepest)
    lora = LoRA(config.model_copy(update={"first_n": layers}), "sender")
    attached = ExitStack()
    attached.enter_context(lora.attach(encoder.lm.model))
    encoder.adapted = lora.active
    weakref.finalize(encoder, attached.close)  # the model outlives its encoder as it was
    return lora
