"""The lossless limit: what a text costs when a language model's probabilities drive an arithmetic coder.

An arithmetic coder takes the sum of -log2 p over the tokens to within two bits (Witten, Neal & Cleary 1987), so that is
computed and no code is written. How large language models fare at it: Delétang et al. 2024, arXiv 2309.10668.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from latentwire.backbone.lm import LanguageModel


@torch.no_grad()
def lm_bytes(lm: LanguageModel, texts: Sequence[str]) -> list[int]:
    """Bytes of each text, rounded up: every token is predicted from those before it, the first one from BOS."""
    out = []
    for text in texts:
        ids = lm.tokenize_with_offsets(text)[0]
        bits = 0.0
        if lm.bos_id is None:
            bits += math.log2(len(lm.tokenizer))
        else:
            ids = [lm.bos_id, *ids]
        row = torch.tensor([ids], device=lm.device)
        nats = lm.surprisal(lm.final_states(row, torch.ones_like(row))[0], row[0])[1:]
        bits += float(nats.sum()) / math.log(2)
        out.append(math.ceil(bits / 8))
    return out
