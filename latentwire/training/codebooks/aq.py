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
    maps_to_y = vocabulary.maps @ rotation.into  # (P, F, k)
    codewords, alone = _codewords(vocabulary, maps_to_y, config.rank)
    mean = z.mean(0)
    usual = codewords[vocabulary.read].mean(0)  # (P, r): which tokens are read first and last are not alike
    x = (codewords[vocabulary.read] - usual).flatten(1)  # (N, P * r)
    y = (z - mean) @ rotation.into  # (N, k)
    within_texts = _within_texts(x, y, alone)
    gain = y.norm() / (x @ within_texts).norm()
    maps = gain * within_texts.unflatten(0, usual.shape)  # (P, r, k)
    phases = len(maps)
    return {
        "mean": mean,
        "into": gain * rotation.into,
        "layers": torch.tensor(evenly(phases, config.layers)),
        "sizes": torch.full((phases,), len(codewords)),
        # A one behind each codeword, so that the last row of a map takes off what is usual.
        "codewords": torch.cat([codewords, torch.ones(len(codewords), 1)], 1),
        "maps": torch.cat([maps, -usual[:, None] @ maps], 1).flatten(0, 1),
    }


def _codewords(vocabulary: Vocabulary, maps_to_y: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Codewords (V, r) of a vocabulary, and their maps to y (P * r, k) for tokens read by themselves.

    maps_to_y: (P, F, k) those of its features. Over what is read, codewords have a standard deviation of about 1.
    """
    seen, times = vocabulary.read.unique(return_counts=True)  # a row for each of N * P would take gigabytes
    metric = torch.einsum("pfk,pgk->fg", maps_to_y, maps_to_y)
    components = principal_rotation(vocabulary.features[seen], metric, min(rank, len(metric)), times)
    projected = (vocabulary.features - components.mean) @ components.into  # (V, r)
    least = projected.abs().amax(0) / LARGEST  # in directions in which only unread tokens differ
    size = projected[vocabulary.read].flatten(0, 1).std(0).maximum(least).clamp(min=1e-6)
    return projected / size, ((components.back * size[:, None]) @ maps_to_y).flatten(0, 1)


def _within_texts(x: Tensor, y: Tensor, alone: Tensor) -> Tensor:
    """(P * r, k) the map from codewords x (N, P * r) to y (N, k): by least squares, with a ridge on its difference from
    that of tokens read by themselves, brought to scale."""
    predicted = x @ alone
    start = alone * ((predicted * y).sum() / predicted.square().sum())
    gram = (x.T @ x).double()
    ridge = RIDGE * len(gram) / len(x) * gram.diagonal().mean()
    missing = (x.T @ (y - x @ start)).double()
    change = torch.linalg.solve(gram + ridge * torch.eye(len(gram)), missing)
    return start + change.float()
