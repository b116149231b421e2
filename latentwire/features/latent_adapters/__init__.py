"""Gated cross-attention to the latents inside the receiver (Flamingo, Alayrac et al. 2022, arXiv 2204.14198)."""

from latentwire.features.latent_adapters.feature import LatentAdapters

__all__ = ["LatentAdapters"]
