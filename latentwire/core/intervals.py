"""Intervals of means, by the bootstrap. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

SEED = 0
"""Of all resamples: the same values have the same interval."""


def bootstrap_ci(
    values: Sequence[float],
    clusters: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    *,
    resamples: int = 2000,
) -> tuple[float, float]:
    """95 % percentile interval of the mean (Efron 1979), or with `weights` of sum(values) / sum(weights).

    With `clusters`, whole clusters are drawn: questions on one passage are not independent. Of a single cluster, which
    says nothing of others, its values are drawn. Draws without any weight say nothing and are left out.
    """
    import numpy as np  # a listing of runs starts without it

    array = np.asarray(values, dtype=np.float64)
    alone = clusters is None or len(set(clusters)) < 2
    groups = np.arange(len(array)) if alone else np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.bincount(groups, weights=array)
    sizes = np.bincount(groups, weights=weights)
    rng = np.random.default_rng(SEED)
    means = np.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(0, len(sums), len(sums))
        means[i] = sums[drawn].sum() / (sizes[drawn].sum() or np.nan)
    low, high = np.nanquantile(means, [0.025, 0.975])
    return float(low), float(high)


def estimate(
    name: str,
    values: Sequence[float],
    clusters: Sequence[int] | None = None,
    weights: Sequence[float] | None = None,
    *,
    resamples: int = 2000,
) -> dict[str, float | list[float]]:
    """A mean, or sum(values) / sum(weights), under its name, and its interval under `<name>_ci`: see `bootstrap_ci`."""
    mean = fsum(values) / (len(values) if weights is None else fsum(weights))
    low, high = bootstrap_ci(values, clusters, weights, resamples=resamples)
    return {name: mean, f"{name}_ci": [min(low, mean), max(high, mean)]}  # both are sums, rounded differently


def with_interval(mean: float, interval: Sequence[float]) -> str:
    """A mean and its interval as tables show them."""
    return f"{mean:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
