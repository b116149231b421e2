"""What a codec is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latentwire.core.errors import WireError

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Codec(ABC):
    """Latents (M, d_z) to layers of bytes, and back.

    Layers are ordered coarse to fine: `decode` takes all of them or any number from the first on. What a reader must
    know beyond M, d_z and the layers travels in the frame: `parameters`, and the id of a `codebook`, which names
    whatever was learned together with the sender (a rotation of the latents, codebooks, probabilities of the codes).
    """

    name: str
    id: int

    @property
    def parameters(self) -> bytes:
        """Settings of the codec as the frame holds them."""
        return b""

    @property
    def codebook(self) -> bytes | None:
        """Id of what was learned: the first 4 bytes of its SHA-256."""
        return None

    def configured(self, settings: Mapping[str, int]) -> Codec:
        """The same codec with some settings changed; WireError for one that it has not."""
        for key in settings:
            raise WireError(f"codec {self.name!r} has no setting {key!r}")
        return self

    def from_frame(self, parameters: bytes, codebook: bytes | None) -> Codec:
        """The codec that wrote a frame. A codebook that is not known here is an error of `decode`, not of this."""
        if codebook is not None:
            raise WireError(f"message with a codebook, which codec {self.name!r} has not")
        if parameters:
            raise WireError(f"message with parameters, which codec {self.name!r} has not")
        return self

    @abstractmethod
    def encode(self, z: Array) -> list[bytes]:
        """Layers of finite latents (M, d_z)."""

    def check(self, layers: Sequence[bytes], count: int) -> None:
        """WireError where layers cannot hold so many latents, as far as that can be told without the codebook."""
        return

    @abstractmethod
    def decode(self, layers: Sequence[bytes], count: int, d_z: int) -> Array:
        """Latents (count, d_z) from one or more layers; WireError where these are not what `encode` writes.

        Nothing is allocated before the layers are known to be as long as count and d_z demand.
        """

    def __str__(self) -> str:
        return self.name


def only_layer(layers: Sequence[bytes], size: int) -> bytes:
    """The layer of a codec that has one of known size."""
    if len(layers) != 1 or len(layers[0]) != size:
        raise WireError(f"message payload of {[len(layer) for layer in layers]} bytes, not [{size}]")
    return layers[0]
