"""The sender: text to latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentwire.config.schema import Config
from latentwire.core.errors import ModelError
from latentwire.diagnostics.tensors import hand_over
from latentwire.encoder.base import Encoder
from latentwire.encoder.refiner import LatentRefiner
from latentwire.encoder.text import SenderText
from latentwire.model.encoding import encode_for_sender


class Sender:
    """An encoder, and the refiner of its latents if there is one. One encoding of a text serves all receivers and all
    questions."""

    def __init__(self, encoder: Encoder, config: Config):
        self.config = config.encoder
        self.layout = config.latent_layout
        self.device = encoder.device
        self.encoder = encoder.to(self.device)
        self.refiner = LatentRefiner(config).to(self.device) if config.features.use_latent_refiner else None

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What is trained of it, by name."""
        parts: dict[str, nn.Module] = {"encoder": self.encoder}
        return parts if self.refiner is None else parts | {"latent_refiner": self.refiner}

    def tokenize(self, text: str) -> SenderText:
        """A text of any length as token ids and windows."""
        return encode_for_sender(self.encoder.source, text, self.config.window, self.config.latent_len, self.layout)

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
        """What the frozen part of the encoder makes of each text; it need be computed only once."""
        return self.encoder.features(texts)

    def encode(self, texts: Sequence[SenderText]) -> tuple[Tensor, Tensor]:
        """Latents of texts: (batch, M, d_z) right-padded, fp32, and counts (batch,)."""
        return self.latents(self.features(texts), [text.latents for text in texts])

    def latents(self, features: Sequence[Tensor], counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """`encode` for texts given by their features and by `SenderText.latents` of each."""
        for one in features:
            hand_over("features", one)
        z = self.encoder(features, counts)
        if self.refiner is not None:
            z = self.refiner(z, counts)
        hand_over("z", z)
        return z, torch.tensor(counts, device=self.device)
