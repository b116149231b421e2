"""Where training starts without the closed form: encoder and readers by statistics of some passages."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from latentwire.core.batches import batched
from latentwire.model.encoding import Prepared
from latentwire.model.system import LatentWire
from latentwire.training.stages.normal_equations import NormalEquations, shared_variance, targets_of


@torch.no_grad()
def standardise(system: LatentWire, passages: Iterable[Prepared], batch_size: int = 8) -> None:
    """Give latents unit variance, and every generator the mean and the scale of its targets.

    What it makes of them is then of the size that the receiver is used to, around the mean of its targets.
    """
    batches = list(batched(passages, batch_size))
    features, counts = [], []
    for batch in batches:
        features += system.sender.features([sent for sent, _ in batch])
        counts += [sent.latents for sent, _ in batch]
    system.sender.encoder.standardise(features, counts)
    for name, receiver in system.receivers.items():
        sums = NormalEquations()
        for batch in batches:
            y = targets_of({name: receiver}, batch, receiver.lm.device)
            sums.add(y.new_zeros(len(y), 0), y)
        _, mean, variance, _, _ = sums.centred()
        groups = receiver.reader.target_groups().to(mean.device)
        receiver.reader.generator.scale.copy_(shared_variance(variance, groups).sqrt())
        receiver.reader.generator.shift.copy_(mean)
        receiver.reader.fitted()
