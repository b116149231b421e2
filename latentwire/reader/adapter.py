"""Embedding reader (adapter): M vectors at the receiver's input, through `inputs_embeds`.

The classic soft prompt of gist tokens and auto-encoders (AutoCompressor, arXiv 2305.14788; ARC-Encoder,
arXiv 2510.20535). The receiver then prefills M positions instead of the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentwire.backbone.context import Context
from latentwire.backbone.lm import LanguageModel
from latentwire.backbone.padding import row_mask
from latentwire.config.sections.reading import AdapterConfig
from latentwire.diagnostics.tensors import hand_over
from latentwire.reader.base import Reader, Statistics, behind_head
from latentwire.reader.calibration import embedding_rms, sample_embeddings, set_rms
from latentwire.reader.color import Color
from latentwire.reader.generator import Generator


class EmbeddingReader(Reader):
    """Latents to input vectors (batch, M, hidden_size), prefilled behind the constant head.

    What the generator makes is coloured (`adapter.color`), calibrated and multiplied by the gain. A text's own
    embeddings need no colour and get the other two.
    """

    rms: Tensor

    def __init__(self, lm: LanguageModel, d_z: int, head_len: int, config: AdapterConfig):
        super().__init__()
        width = lm.anatomy.hidden_size
        self.calibration = config.calibration
        self.generator = Generator(d_z, width, config.hidden)
        self.head = nn.Parameter(torch.zeros(head_len, width))
        start = config.fixed_rms if config.calibration == "fixed" else embedding_rms(lm)
        self.register_buffer("rms", torch.tensor(start))
        self.color = None if config.color == "none" else Color(sample_embeddings(lm), config.color == "full")
        self.gain: float | Tensor = config.gain
        if config.learn_gain:
            self.gain = nn.Parameter(torch.tensor(config.gain))
        self._known: Statistics | None = None

    def targets(self, lm: LanguageModel, ids: Tensor, mask: Tensor, phase_tokens: Tensor) -> Tensor:
        """The mean input embedding of each window's phase tokens: (batch, M, hidden_size)."""
        rows = torch.arange(len(ids), device=ids.device)[:, None, None]
        return lm.embed(ids)[rows, phase_tokens].float().mean(1)

    def fitted(self) -> None:
        scale, shift = self.generator.scale, self.generator.shift
        if self.calibration == "train_stats":
            self.rms.copy_((scale.pow(2) + shift.pow(2)).mean().sqrt())
        if self.color is not None:
            self.color.start(shift, scale)

    def target_groups(self) -> Tensor:
        return torch.zeros(self.generator.linear.shape[1], dtype=torch.long)

    @torch.no_grad()
    def reset_head(self, lm: LanguageModel, head: list[int]) -> None:
        if head:
            self.head.copy_(lm.embed(torch.tensor(head, device=lm.device)).float())

    def generate(self, z: Tensor, counts: Tensor) -> Tensor:
        values = self.generator(z, counts)
        return values if self.color is None else self.color(values, row_mask(counts, values.shape[1]))

    def calibrate(self, values: Tensor) -> Tensor:
        if self.calibration != "none":
            values = set_rms(values, self.rms)
        return values * self.gain

    def opening(self, lm: LanguageModel, head: Sequence[int], ids: Sequence[int]) -> Tensor:
        """The embeddings of the tokens: (n, hidden_size)."""
        return lm.embed(torch.tensor([*ids], device=lm.device))

    def embeds(self, values: Tensor, counts: Tensor, opening: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Head and calibrated values at the model's input (batch, head + M, hidden_size), left-padded, with a mask."""
        head = self.head if opening is None else torch.cat([self.head, opening.to(self.head)])
        values = self.calibrate(values)
        hand_over("embeds", values, row_mask(counts, values.shape[1]))
        return behind_head(head, values, counts)

    def context(self, lm: LanguageModel, values: Tensor, counts: Tensor, opening: Tensor | None = None) -> Context:
        """See `Reader.context`; values: (batch, M, hidden_size)."""
        embeds, mask = self.embeds(values, counts, opening)
        return lm.prefill(mask, embeds=embeds)

    def known_statistics(self, lm: LanguageModel) -> Statistics:
        """Of the token embeddings, each dimension for itself."""
        if self._known is None:
            embeddings = sample_embeddings(lm)
            each = torch.arange(embeddings.shape[1], device=lm.device)
            self._known = Statistics(embeddings.mean(0), embeddings.std(0), each)
        return self._known

    def expected_squares(self) -> Tensor:
        return self.rms.pow(2).expand(self.generator.scale.shape)

    def parts(self, values: Tensor) -> Tensor:
        return values[..., None, :]

    def parts_of_tokens(self, lm: LanguageModel, ids: Tensor) -> Tensor:
        """The token embeddings: (n, 1, hidden_size)."""
        return lm.embed(ids).float()[:, None]
