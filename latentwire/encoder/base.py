"""What an encoder is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from latentwire.backbone.lm import LanguageModel
from latentwire.config.schema import Config
from latentwire.core.errors import ModelError
from latentwire.encoder.text import SenderText


class TextCutter(Protocol):
    """What cuts texts into the sender's tokens; `frame`: the special tokens before and behind those of a text."""

    name: str

    @property
    def frame(self) -> tuple[list[int], list[int]]: ...

    def tokenize_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]: ...


class Encoder(nn.Module, ABC):
    """Text to latents in two steps: features of a text, which are frozen and computed once, then what is trained.

    A frozen model behind an encoder is not a part of the module: it is rebuilt from its name.
    """

    from_scratch = True
    """Whether training starts from random weights, at optimizer.lr_sender."""
    source: TextCutter
    device: torch.device

    @classmethod
    @abstractmethod
    def load(cls, config: Config, device: str) -> Encoder:
        """Load what encoder.model names, and build the encoder on it. ModelError where that cannot be had."""

    @abstractmethod
    def too_long(self, text: SenderText) -> str | None:
        """Why a text is longer than the encoder can read, beginning with the dotted key that says so; else None."""

    @abstractmethod
    def features(self, texts: Sequence[SenderText]) -> list[Tensor]:
        """What the frozen part makes of each text, without gradients. A text's features do not depend on the others."""

    def choose(self, text: SenderText) -> list[list[int]]:
        """(keep, N) indices of the tokens that are read for each window, where `encoder.keep` leaves some out."""
        raise NotImplementedError

    def choose_ahead(self, texts: Sequence[SenderText]) -> None:
        """Make the choices of many texts in batches, where there are choices to make. What nearly ties in such a batch
        may be chosen otherwise than for a text by itself."""
        return

    @abstractmethod
    def forward(self, features: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
        """Latents (batch, M, d_z) in fp32, right-padded: counts[i] of them in row i."""

    def standardise(self, features: Sequence[Tensor], counts: Sequence[int]) -> None:
        """Called once before training from scratch, with some texts' features: latents then have unit variance."""
        return


def too_many_tokens(text: SenderText, limit: int) -> str | None:
    """The refusal of a text that the sender's pretrained model has not enough positions for."""
    return over_window("encoder.model", len(text.ids), limit, "sender")


def over_window(key: str, tokens: int, limit: int, whose: str) -> str | None:
    """The refusal of a text of more tokens than somebody's window, whose dotted key is `key`."""
    if tokens <= limit:
        return None
    return f"{key}: a text of {tokens} tokens is longer than the {whose}'s window of {limit}"


def deepest_layer(layers: Sequence[int], lm: LanguageModel, key: str) -> int:
    """The deepest of some layers; ModelError, which names the dotted key, where the model does not have as many."""
    deepest = max(layers)
    if deepest > lm.anatomy.layers:
        raise ModelError(f"{key}: {deepest} is more than the {lm.anatomy.layers} layers of {lm.name!r}")
    return deepest


def rms_normalised(states: Tensor) -> Tensor:
    """Vectors (..., d) divided by their root mean square: a pretrained model's layers differ by orders of magnitude."""
    return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6)


def states_in_windows(layers: Sequence[Tensor], places: Sequence[Sequence[int]], phases: int) -> list[Tensor]:
    """Window features of each text: (M_i, phases * len(layers) * hidden_size), fp32.

    layers: hidden states (batch, T, hidden_size), one entry a layer; places: for each text the M_i * phases tokens that
    are read, window by window.
    """
    states = rms_normalised(torch.stack(list(layers), 2).float())
    return [row[list(at)].reshape(len(at) // phases, -1) for row, at in zip(states, places, strict=True)]
