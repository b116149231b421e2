"""Embedding reader (adapter): M vectors at the receiver's input, through `inputs_embeds`.

The classic soft prompt of gist tokens and auto-encoders (AutoCompressor, arXiv 2305.14788; ARC-Encoder,
arXiv 2510.20535). The receiver then prefills M positions instead of the text.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentwire.backbone.lm import Context, LanguageModel
from latentwire.diagnostics.tensors import hand_over
from latentwire.reader.base import Reader, left_align
from latentwire.reader.calibration import embedding_rms, set_rms
from latentwire.reader.generator import Generator


class EmbeddingReader(Reader):
    """Latents to input vectors (batch, M, hidden_size), calibrated, then prefilled behind the constant head."""

    rms: Tensor

    def __init__(
        self,
        lm: LanguageModel,
        d_z: int,
        head_len: int,
        *,
        hidden: int = 0,
        calibration: str = "embed_rms",
        fixed_rms: float = 1.0,
    ):
        super().__init__()
        width = lm.anatomy.hidden_size
        self.calibration = calibration
        self.generator = Generator(d_z, width, hidden)
        self.head = nn.Parameter(torch.zeros(head_len, width))
        start = fixed_rms if calibration == "fixed" else embedding_rms(lm)
        self.register_buffer("rms", torch.tensor(start))

    def targets(self, lm: LanguageModel, ids: Tensor, mask: Tensor, phase_tokens: Tensor) -> Tensor:
        """The mean input embedding of each window's phase tokens: (batch, M, hidden_size)."""
        rows = torch.arange(len(ids), device=ids.device)[:, None, None]
        return lm.embed(ids)[rows, phase_tokens].float().mean(1)

    def fitted(self) -> None:
        if self.calibration == "train_stats":
            self.rms.copy_((self.generator.scale.pow(2) + self.generator.shift.pow(2)).mean().sqrt())

    def target_groups(self) -> Tensor:
        return torch.zeros(self.generator.linear.shape[1], dtype=torch.long)

    @torch.no_grad()
    def reset_head(self, lm: LanguageModel, head: list[int]) -> None:
        if head:
            self.head.copy_(lm.embed(torch.tensor(head, device=lm.device)).float())

    def context(self, lm: LanguageModel, values: Tensor, counts: Tensor) -> Context:
        if self.calibration != "none":
            values = set_rms(values, self.rms)
        embeds, mask = left_align(self.head, values, counts)
        hand_over("embeds", embeds)
        return lm.prefill(mask, embeds=embeds)
