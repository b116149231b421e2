"""Other methods that the wire is measured against, at the positions that its latents take: each in a file of its own,
on the package of its authors, which is optional. Like the sender, none of them sees the question."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.metadata import version

from latentwire.core.errors import ConfigError


def versions_of(rivals: Sequence[str]) -> dict[str, str]:
    """The versions of the packages behind some rivals; ConfigError where one cannot be imported."""
    for name in rivals:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"evaluation.rivals: the package {name} cannot be imported ({error}); docs/rivals.md tells how to "
                "install it"
            ) from error
    return {name: version(name) for name in rivals}
