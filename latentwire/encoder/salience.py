"""How likely somebody asks about a token of a text, or asks with it.

What is hard to predict (`encoder.keep_by` = surprisal) is not what is asked: among the passages of SQuAD, tokens of
answers are no more surprising than others. A linear map of the sender's hidden states tells them apart well. It is
fitted to passages with questions (`training.stages.salience`); a text is chosen from without its questions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentwire.core.hashing import stable_hash

MOST_NATS = 20.0
"""Surprisal beyond this counts as this: the first token of a text may have an infinite one."""
LEAST = 0.01
"""Probabilities are no smaller: among tokens that nobody asks about those come first that are hardest to predict."""
WEIGHTS = (1.5, 1.0)
"""How much it counts that a token is part of an answer, and that it is a word of a question."""
MORE_NATS = 4.0
"""Added to the surprisal of every token."""


class Salience(nn.Module):
    """Inputs (..., d_states + 1) of tokens to scores (...), by which those that are read are chosen.

    The score is how likely a token is an answer's or a question's, times what it costs not to be told it: its
    surprisal, with something added, as what a model can guess is not known for certain either.
    """

    mean: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, d_states: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(d_states + 1))
        self.register_buffer("weight", torch.zeros(d_states + 1, len(WEIGHTS)))
        self.register_buffer("bias", torch.zeros(len(WEIGHTS)))

    def set(self, mean: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Take up a fit as a checkpoint keeps it, in 16 bits: what nearly ties is then chosen alike from there."""
        for name, value in (("mean", mean), ("weight", weight), ("bias", bias)):
            getattr(self, name).copy_(value.to(torch.bfloat16))

    @property
    def digest(self) -> str:
        """Tells it from others."""
        return stable_hash([self.mean.tolist(), self.weight.tolist(), self.bias.tolist()])

    @staticmethod
    def inputs(states: Tensor, surprisal: Tensor) -> Tensor:
        """What is looked at of tokens: their normalised hidden states (..., d_states), and their surprisal (...) in
        nats."""
        return torch.cat([states, surprisal.clamp(max=MOST_NATS)[..., None].to(states)], -1)

    def probabilities(self, inputs: Tensor) -> Tensor:
        """(..., kinds) how likely each token is part of an answer, and a word of a question."""
        return ((inputs - self.mean) @ self.weight + self.bias).clamp(LEAST, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """What each token is worth (..., T), from what `salience_inputs` gives of it (..., T, d_states + 1)."""
        asked = self.probabilities(inputs) @ inputs.new_tensor(WEIGHTS)
        return asked * (inputs[..., -1] + MORE_NATS)
