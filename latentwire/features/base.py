"""What a feature is: an optional part of a receiver, with one life cycle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn

from latentwire.backbone.context import Context
from latentwire.backbone.lm import LanguageModel


class ReadingFeature(nn.Module):
    """A feature of how latents are read. Each of its hooks may be left as it is here, where it does nothing.

    It is built for one receiver's model, which is not a part of it: `FEATURES[name](config, lm)`.
    """

    train_only = False
    """Whether it only adds a training loss and is not needed to read a message."""
    positions = 0
    """Positions that it adds to what the receiver reads; they count as such in every compression figure."""
    weight = 1.0
    """What its training loss counts."""

    def attach(self, model: nn.Module) -> AbstractContextManager[None]:
        """Attach to a model; leaving the context restores the base model exactly."""
        return nullcontext()

    def extend(self, lm: LanguageModel, context: Context) -> Context:
        """The context with what the feature adds to it; context.latents (batch, M, d_z) are what was read."""
        return context

    @contextmanager
    def reading(self, context: Context) -> Iterator[None]:
        """Around every pass of the model that reads on from a context."""
        yield

    def loss(self, lm: LanguageModel, context: Context, texts: Sequence[Sequence[int]]) -> Tensor | None:
        """A training loss of the latents behind a context, given the token ids of the texts, their heads
        left out; None for none."""
        return None

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that training moves (fp32)."""
        return self.parameters()
