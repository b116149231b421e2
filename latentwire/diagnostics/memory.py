"""Memory of the process and of the accelerator."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def peak_memory_mb() -> float:
    """Peak memory in MB (10**6 bytes): of the accelerator once torch has used CUDA, else of the process."""
    if (cuda := _cuda()) is not None:
        return round(cuda.max_memory_allocated() / 1e6, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def reset_peak() -> None:
    """Start a new peak at what is in use now. Of a process, only Linux can; elsewhere its peak just goes on."""
    if (cuda := _cuda()) is not None:
        cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


class MemoryProfile:
    """Peak memory of the phases of a step, and the highest of all steps. Without `enabled` it measures nothing."""

    def __init__(self, enabled: bool):
        self.enabled = enabled
        self.phases: dict[str, float] = {}
        self.highest = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what runs inside; a phase that runs several times in a step counts with its highest peak."""
        if not self.enabled:
            yield
            return
        reset_peak()
        yield
        self.phases[name] = max(self.phases.get(name, 0.0), peak_memory_mb())

    def step(self) -> dict[str, float]:
        """What a step's record says of memory, in MB; the next step starts anew."""
        if not self.enabled:
            return {"memory_mb": peak_memory_mb()}
        phases, self.phases = self.phases, {}
        peak = max(phases.values(), default=0.0)
        self.highest = max(self.highest, peak)
        return {"memory_mb": peak} | {f"memory_mb/{name}": value for name, value in phases.items()}
