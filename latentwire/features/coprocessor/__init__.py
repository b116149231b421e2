"""Cache augmentation by a coprocessor (Liu et al. 2024, arXiv 2412.17747), reading latents in place of the cache.

A small network reads the message's latents and adds keys and values to every layer of the frozen receiver. It stands
beside the embedding reader; the slot reader makes the whole cache from the latents already, so the two exclude each
other.
"""

from latentwire.features.coprocessor.feature import Coprocessor

__all__ = ["Coprocessor"]
