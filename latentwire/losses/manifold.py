"""Whether what a reader makes looks like what its receiver knows: means, variances, sizes."""

from __future__ import annotations

import torch
from torch import Tensor


def group_mean(values: Tensor, groups: Tensor) -> Tensor:
    """Means of values (..., d) over the dimensions of each group (d,): (..., groups)."""
    counts = torch.bincount(groups)
    sums = values.new_zeros(*values.shape[:-1], len(counts)).index_add(-1, groups, values)
    return sums / counts


def statistics_distance(vectors: Tensor, mean: Tensor, std: Tensor, groups: Tensor) -> Tensor:
    """Distance in mean and spread of vectors (n, d) from known mean and standard deviation (d,), which groups share.

    Squared difference of means in units of the known deviation, plus squared relative difference of deviations.
    """
    known = group_mean(std.pow(2), groups).clamp(min=1e-12).sqrt()
    spread = (group_mean(vectors.var(0, correction=0), groups) + 1e-12).sqrt()
    shift = (vectors.mean(0) - mean) / known[groups]
    return shift.pow(2).mean() + (spread / known - 1.0).pow(2).mean()


def rms_deviation(vectors: Tensor, squares: Tensor, groups: Tensor) -> Tensor:
    """Squared relative deviation of each vector's RMS, group by group: vectors (n, d), expected squares (d,)."""
    expected = group_mean(squares, groups).clamp(min=1e-12).sqrt()
    return ((group_mean(vectors.pow(2), groups) + 1e-12).sqrt() / expected - 1.0).pow(2).mean()


def scale_deviation(latents: Tensor) -> Tensor:
    """Squared deviation from 1 of the RMS of each dimension of latents (n, d_z), as codecs expect it."""
    return ((latents.pow(2).mean(0) + 1e-12).sqrt() - 1.0).pow(2).mean()
