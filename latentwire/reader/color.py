"""Colour: generated vectors get the mean and the covariance of the receiver's token embeddings.

Whitening with the statistics of what comes in, then colouring with those of the embedding table: correlation
alignment, CORAL (Sun, Feng, Saenko 2016, arXiv 1511.05547).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOMENTUM = 0.05
SHRINKAGE, OF_TABLE = 0.05, 1e-3
"""Share of a covariance that is replaced by its mean variance in all directions: a batch's few rows leave most of them
unseen; the table's many do not."""


class Color(nn.Module):
    """An affine map of vectors (..., d) onto the statistics of embeddings (rows, d).

    `full` matches covariances, else each dimension's variance alone. The statistics of what comes in are running ones,
    as in batch normalisation (Ioffe & Szegedy 2015, arXiv 1502.03167): they follow in training, at other times they
    stay as they are, and no gradient goes through them. The table's are not saved: they are the receiver's own.
    """

    mean: Tensor
    root: Tensor
    table_mean: Tensor
    table_root: Tensor

    def __init__(self, embeddings: Tensor, full: bool):
        super().__init__()
        self.full = full
        width = embeddings.shape[1]
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("root", torch.eye(width) if full else torch.ones(width))
        self.register_buffer("table_mean", embeddings.mean(0), persistent=False)
        self.register_buffer("table_root", self._root_of(self._spread(embeddings, OF_TABLE)), persistent=False)

    def start(self, mean: Tensor, std: Tensor) -> None:
        """Begin with known statistics (d,) of what will come in."""
        self.mean.copy_(mean)
        self.root.copy_(std.diag() if self.full else std)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """vectors: (batch, M, d), of which mask (batch, M) tells the real ones."""
        if self.training and torch.is_grad_enabled():
            rows = vectors.detach()[mask]
            self._follow(rows[rows.isfinite().all(1)])
        centred = vectors - self.mean
        if self.full:
            white = torch.linalg.solve_triangular(self.root, centred.flatten(0, -2).T, upper=False)
            return (self.table_root @ white).T.view_as(vectors) + self.table_mean
        return centred / self.root * self.table_root + self.table_mean

    @torch.no_grad()
    def _follow(self, rows: Tensor) -> None:
        if not len(rows):  # of a step that will be skipped: what it leaves here would stay
            return
        before = self.root @ self.root.T if self.full else self.root.pow(2)
        self.root.copy_(self._root_of(before.lerp(self._spread(rows, SHRINKAGE), MOMENTUM)))
        self.mean.lerp_(rows.mean(0), MOMENTUM)

    def _spread(self, rows: Tensor, shrinkage: float) -> Tensor:
        """Covariance (d, d), shrunk, or variances (d,) of rows (n, d)."""
        centred = rows - rows.mean(0)
        if not self.full:
            return centred.pow(2).mean(0)
        covariance = centred.T @ centred / len(rows) * (1 - shrinkage)
        covariance.diagonal().add_(shrinkage * centred.pow(2).mean())
        return covariance

    def _root_of(self, spread: Tensor) -> Tensor:
        """What unit variance is multiplied with to get this spread. Roots, unlike covariances, survive rounding."""
        return torch.linalg.cholesky(spread) if self.full else spread.clamp(min=1e-12).sqrt()
