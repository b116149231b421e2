"""A reconstruction head on the latents, for training only.

The autoencoding task of ICAE (Ge et al. 2024, arXiv 2307.06945) without its decoder pass: what the latents say of the
beginning of the text must be enough to rebuild its input embeddings. Named after gist tokens (Mu et al. 2023, arXiv
2304.08467), whose place the latents take.
"""

from latentwire.features.gist_head.feature import GistHead

__all__ = ["GistHead"]
