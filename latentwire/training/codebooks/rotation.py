"""A rotation of latents that ranks dimensions by what readers make of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.wire.codecs.integers import quantize, scales_of


@dataclass
class Rotation:
    """y = (z - mean) @ into has uncorrelated dimensions, whose errors all weigh alike, those with the largest variance
    first; z = mean + y @ back. mean (d_z,), into (d_z, k), back (k, d_z)."""

    mean: Tensor
    into: Tensor
    back: Tensor

    def stored(self) -> tuple[Rotation, dict[str, Tensor]]:
        """What is left of it in a codebook, and that one's arrays: `back` has 8 bits a number and a scale a row, and
        `into` is such that back @ into is one. It is not there where all dimensions are coded: the inverse of back."""
        levels, codes = quantize(self.back.numpy())
        scale = torch.from_numpy(scales_of(codes))
        mean, back = self.mean.half(), torch.from_numpy(levels) * scale
        into = (self.into.double() @ torch.linalg.inv(back.double() @ self.into.double())).float()
        arrays = {"mean": mean, "back": torch.from_numpy(levels), "scale": scale[:, 0].half()}
        if len(back) < back.shape[1]:
            arrays["into"] = into.half()
            into = into.half().float()
        return Rotation(mean.float(), into, back), arrays


def principal_rotation(z: Tensor, metric: Tensor, width: int, times: Tensor | None = None) -> Rotation:
    """The `width` principal components of latents z (N, d_z), where an error e weighs e' metric e.

    times: (N,) how many times each latent counts; once without it.
    """
    shares = (torch.ones(len(z)) if times is None else times).double()
    shares /= shares.sum()
    mean = (shares @ z.double()).float()
    centred = (z - mean).double().mul_(shares.sqrt()[:, None])
    covariance = centred.T @ centred
    values, vectors = torch.linalg.eigh(metric.double())
    root = values.clamp(min=1e-6 * float(values[-1])).sqrt()
    a, inverse = vectors * root, vectors / root  # metric = a a'; inverse = a'^-1
    components = torch.linalg.eigh(a.T @ covariance @ a)[1].flip(1)[:, :width]
    return Rotation(mean, (a @ components).float(), (inverse @ components).T.float())
