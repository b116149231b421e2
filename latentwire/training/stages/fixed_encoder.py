"""Stage 2 where the sender is trained already: only the generators of new receivers, in closed form.

Ridge regression from latents to a receiver's targets. As the encoder does not change, every target is solved on its own
and no rank is cut, so how much each of them matters plays no part. The sums have d_z columns rather than those of the
window features, and any encoder will do, not only one that was itself solved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latentwire.model.encoding import Prepared
from latentwire.model.receiver import Receiver
from latentwire.model.sender import Sender
from latentwire.training.stages.closed_form import Factors, hand_out
from latentwire.training.stages.normal_equations import (
    cholesky,
    gather,
    groups_of,
    shared_variance,
    targets_of,
    unpadded,
)


@torch.no_grad()
def fit_generators(
    sender: Sender,
    receivers: Mapping[str, Receiver],
    passages: Iterable[Prepared],
    *,
    held_out: int,
    ridge: float,
    **gathering: Any,
) -> dict[str, float]:
    """Fit the generators of receivers to a sender's latents; returns the held-out R² by receiver.

    `ridge` is a share of the latents' mean variance. The first `held_out` passages are set aside. Other options are
    those of `gather`.
    """

    def rows(batch: Sequence[Prepared]) -> tuple[Tensor, Tensor]:
        z = unpadded(*sender.latents_of([sent for sent, _ in batch]))
        return z, targets_of(receivers, batch, z.device)

    equations, z, y = gather(passages, rows, held_out=held_out, **gathering)
    mean_z, mean_y, variance, zz, zy = equations.centred()
    scale = shared_variance(variance, groups_of(receivers.values()).to(zz.device)).sqrt()
    zz.diagonal().add_(ridge * zz.diagonal().mean())
    weight = torch.cholesky_solve(zy / scale, cholesky(zz))
    scores = hand_out(Factors(mean_z, torch.eye(len(zz), device=zz.device), weight, scale, mean_y), receivers, z, y)
    for receiver in receivers.values():  # training has moved the latents' mean away from zero
        generator = receiver.reader.generator
        generator.centre.copy_(mean_z)
    return scores
