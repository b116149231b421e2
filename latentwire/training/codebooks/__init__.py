"""Codebooks from latents: a rotation that ranks dimensions by what readers make of them, then codes for the first ones.

Everything here works on latents that are there already; `stages.codec` collects them and trains around the result.
"""

from latentwire.training.codebooks.aq import Vocabulary, fit_aq
from latentwire.training.codebooks.build import build_codebook, counted, most_layers
from latentwire.training.codebooks.frequencies import Starts
from latentwire.training.codebooks.fsq import fit_fsq
from latentwire.training.codebooks.rotation import Rotation, principal_rotation
from latentwire.training.codebooks.rvq import fit_rvq

__all__ = [
    "Rotation",
    "Starts",
    "Vocabulary",
    "build_codebook",
    "counted",
    "fit_aq",
    "fit_fsq",
    "fit_rvq",
    "most_layers",
    "principal_rotation",
]
