"""The sender: text to latents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentwire.backbone.lm import LanguageModel, pad_right
from latentwire.config.schema import Config
from latentwire.core.errors import ConfigError, ModelError, WireError
from latentwire.diagnostics.tensors import hand_over
from latentwire.encoder.backbone import BackboneEncoder
from latentwire.model.chunks import split_text
from latentwire.model.encoding import SenderText, encode_for_sender, stack_phases
from latentwire.wire.codecs import Codec, parse_codec
from latentwire.wire.message import Wire

BATCH = 8
"""Texts that are encoded together."""


class Sender:
    """A frozen LM under an encoder. One encoding of a text serves all receivers and all questions.

    `fingerprint` names the checkpoint that it was loaded from; its messages carry it. `codec` is what they are encoded
    with unless another one is asked for, `chunk` the tokens of a longer text that go into one message.
    """

    def __init__(self, lm: LanguageModel, config: Config):
        self.config = config.encoder
        self.fingerprint: bytes | None = None
        self.codec = default_codec(config)
        self.chunk = min(config.data.max_context_tokens, lm.anatomy.max_positions - 1)
        deepest = max(self.config.layers)
        if deepest > lm.anatomy.layers:
            raise ModelError(f"encoder.layers: {deepest} is more than the {lm.anatomy.layers} layers of {lm.name!r}")
        self.encoder = BackboneEncoder(lm, self.config.layers, self.config.window, self.config.d_z).to(lm.device)

    @property
    def lm(self) -> LanguageModel:
        return self.encoder.lm

    def tokenize(self, text: str) -> SenderText:
        """A text of any length as token ids and windows."""
        return encode_for_sender(self.lm, text, self.config.window, self.config.latent_len)

    def prepare(self, text: str) -> SenderText:
        """Tokenize a text and cut it into windows; ModelError where it is longer than the sender can read."""
        prepared = self.tokenize(text)
        if len(prepared.ids) > self.lm.anatomy.max_positions:
            raise ModelError(
                f"encoder.model: a text of {len(prepared.ids)} tokens is longer than the sender's window of "
                f"{self.lm.anatomy.max_positions}"
            )
        return prepared

    @torch.no_grad()
    def features(self, texts: Sequence[SenderText]) -> list[Tensor]:
        """Window features of each text: (M_i, d_features), fp32."""
        ids, mask = pad_right([t.ids for t in texts], self.lm.pad_id, self.lm.device)
        phase_tokens, counts = stack_phases([t.phase_tokens for t in texts], self.lm.device)
        features = self.encoder.features(ids, mask, phase_tokens)
        return [row[:count] for row, count in zip(features, counts.tolist(), strict=True)]

    def latents(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Latents of texts given by their features: (batch, M, d_z) right-padded, and counts (batch,)."""
        counts, rows = [len(f) for f in features], torch.cat(list(features))
        hand_over("features", rows)
        z = self.encoder(rows)  # one product: its gradient is as large as the encoder itself
        rows = torch.nn.utils.rnn.pad_sequence(z.split(counts), batch_first=True)
        hand_over("z", rows)
        return rows, torch.tensor(counts, device=self.lm.device)

    # ---- messages -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, folder: str | Path, changes: Mapping[str, Any] | None = None) -> Sender:
        """The sender of a checkpoint, or of a run's last one, and nothing else of it.

        changes: dotted keys of the configuration with other values, such as {"system.device": "cpu"}.
        """
        from latentwire.model.pretrained import load_sender

        return load_sender(folder, changes)

    def encode(self, text: str, codec: str | Codec | None = None, *, with_text: bool = False) -> Wire:
        """The message of one text; with the text itself beside the latents if asked for."""
        return self.encode_batch([text], codec, with_text=with_text)[0]

    def encode_batch(
        self, texts: Sequence[str], codec: str | Codec | None = None, *, with_text: bool = False
    ) -> list[Wire]:
        """One message for each text; ModelError where one is longer than the sender can read."""
        return self.messages([self.prepare(text) for text in texts], codec, texts=texts if with_text else None)

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
        chunks = split_text(pieces, chunk or self.chunk, lambda text: self.lm.tokenize_with_offsets(text)[1])
        ahead = next(chunks, "")
        while ahead:
            text, ahead = ahead, next(chunks, "")
            yield from self.messages([self.prepare(text)], codec, texts=[text] if with_text else None, more=bool(ahead))

    @torch.no_grad()
    def messages(
        self,
        prepared: Sequence[SenderText],
        codec: str | Codec | None = None,
        *,
        texts: Sequence[str] | None = None,
        more: bool = False,
    ) -> list[Wire]:
        """`encode_batch` for texts that are tokenized already."""
        out: list[Wire] = []
        for start in range(0, len(prepared), BATCH):
            z, counts = self.latents(self.features(prepared[start : start + BATCH]))
            for row, count in zip(z.cpu(), counts.tolist(), strict=True):
                text = texts[len(out)] if texts is not None else None
                out.append(Wire.of(row[:count], codec or self.codec, text=text, sender=self.fingerprint, more=more))
        return out


def default_codec(config: Config) -> Codec:
    """The codec that is measured and sent with unless another one is asked for."""
    try:
        return parse_codec(config.evaluation.codec)
    except WireError as error:
        raise ConfigError(f"evaluation.codec: {error}") from None
