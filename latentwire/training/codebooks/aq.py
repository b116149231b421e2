"""What tokens add to latents, for the codec that names tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentwire.config.sections.latents import CodecConfig
from latentwire.training.codebooks.columns import evenly
from latentwire.training.codebooks.rotation import Rotation, principal_rotation

RIDGE = 5.0
"""Of what latents say beyond tokens by themselves: a share of the mean sum of squares, for each unknown a latent."""
LARGEST = 1e4
"""The largest number of a codeword of a vocabulary, which has 16 bits."""


@dataclass
class Vocabulary:
    """What each token adds to a latent, in the order in which those of a window are read: features @ maps.

    features: (V, F); maps: (P, F, d_z); read: (N, P) the tokens behind each of some latents.
    """

    features: Tensor
    maps: Tensor
    read: Tensor


def fit_aq(z: Tensor, vocabulary: Vocabulary, rotation: Rotation, config: CodecConfig) -> dict[str, Tensor]:
    """What a codebook holds of what tokens add to latents z (N, d_z), in place of a rotation's own mean and `into`.

    Tokens read by themselves say where to start: `codec.rank` principal components of what is known of them, weighed by
    what of it arrives. How much of that remains within a text, latents say: least squares with a ridge on the change.
    Expectations vary less than latents do, and readers answer better from what varies as much: hence a gain, with which
    a writer looks for the codewords, too.
    """
    maps = vocabulary.maps @ rotation.into
    seen, times = vocabulary.read.unique(return_counts=True)  # a row for each of N * P would take gigabytes
    metric = torch.einsum("pfk,pgk->fg", maps, maps)
    own = principal_rotation(vocabulary.features[seen], metric, min(config.rank, len(metric)), times)
    table = (vocabulary.features - own.mean) @ own.into
    least = table.abs().amax(0) / LARGEST  # in directions in which only unread tokens differ
    size = table[vocabulary.read].flatten(0, 1).std(0).maximum(least).clamp(min=1e-6)
    table = table / size
    maps = ((own.back * size[:, None]) @ maps).flatten(0, 1)
    mean, x = z.mean(0), table[vocabulary.read]
    usual = x.mean(0)  # (P, r): which tokens are read first and last are not alike
    x, y = (x - usual).flatten(1), (z - mean) @ rotation.into
    alone = x @ maps
    maps = maps * ((alone * y).sum() / alone.square().sum())
    gram = (x.T @ x).double()
    gram += RIDGE * len(gram) / len(x) * gram.diagonal().mean() * torch.eye(len(gram))
    maps = maps + torch.linalg.solve(gram, (x.T @ (y - x @ maps)).double()).float()
    gain = y.norm() / (x @ maps).norm()
    maps = gain * maps.unflatten(0, usual.shape)
    phases = len(maps)
    return {
        "mean": mean,
        "into": gain * rotation.into,
        "layers": torch.tensor(evenly(phases, config.layers)),
        "sizes": torch.full((phases,), len(table)),
        # A one behind each codeword, so that the last row of a map takes off what is usual.
        "codewords": torch.cat([table, torch.ones(len(table), 1)], 1),
        "maps": torch.cat([maps, -usual[:, None] @ maps], 1).flatten(0, 1),
    }
