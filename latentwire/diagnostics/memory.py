"""Memory of the process and of the accelerator."""

from __future__ import annotations

import resource
import sys


def peak_memory_mb() -> float:
    """Peak memory in MB (10**6 bytes): of the accelerator once torch has used CUDA, else of the process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)
