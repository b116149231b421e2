"""How the latents of a message are dealt out among receivers. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class LatentLayout:
    """Which latents of a message each receiver reads, where their number is fixed:

        shared | private of the first receiver | private of the second | ...

    with receivers in the order of their names. Every receiver reads the shared latents and its own private ones.
    `total` is None where the number of latents follows from a text's length; all of them are shared then.
    """

    total: int | None = None
    shared: int = 0
    private: int = 0
    names: tuple[str, ...] = ()

    @property
    def read(self) -> int | None:
        """Latents that one receiver reads; None where that follows from a text's length."""
        return None if self.total is None else self.shared + self.private

    def read_of(self, made: int) -> int:
        """How many of a message's latents one receiver reads."""
        return self.shared + self.private if self.private else made

    def places(self, made: int) -> list[int]:
        """For each latent of a message, its place among those that a receiver of it reads."""
        if not self.private:
            return [*range(made)]
        return [i if i < self.shared else self.shared + (i - self.shared) % self.private for i in range(made)]

    def own(self, name: str) -> list[int] | None:
        """Indices of the latents that a receiver reads; None for all of a message."""
        if not self.private:
            return None
        start = self.shared + self.private * self.names.index(name)
        return [*range(self.shared), *range(start, start + self.private)]


def deal_out(
    total: int | None, shared: int | None, private: int, names: Iterable[str], *, fixed: bool = True
) -> LatentLayout:
    """The layout of encoder.latent_len, latent_shared_len and latent_private_len; ValueError where they contradict.

    Not `fixed`: the encoder makes as many latents as a text has windows, so that none can be set aside.
    """
    names = tuple(sorted(names))
    if not fixed:
        for key, value in (("latent_shared_len", shared), ("latent_private_len", private)):
            if value:
                raise ValueError(
                    f"encoder.{key}: encoder.type = 'backbone' makes one latent a window, and every receiver reads "
                    "them all; byte, simple-st and stq can set some aside"
                )
        return LatentLayout()
    if shared is None:
        if private and total is None:
            raise ValueError("encoder.latent_private_len: needs encoder.latent_shared_len or encoder.latent_len")
        if total is None:
            return LatentLayout()
        shared = total - private * len(names)
        if shared < 0:
            raise ValueError(
                f"encoder.latent_private_len: {len(names)} receivers x {private} private latents are more than "
                f"encoder.latent_len = {total}"
            )
    made = shared + private * len(names)
    if total is not None and total != made:
        raise ValueError(
            f"encoder.latent_len: {total} is not latent_shared_len + receivers x latent_private_len = "
            f"{shared} + {len(names)} x {private} = {made}"
        )
    if not made:
        raise ValueError("encoder.latent_shared_len: 0 shared and 0 private latents are no message")
    return LatentLayout(made, shared, private, names)
