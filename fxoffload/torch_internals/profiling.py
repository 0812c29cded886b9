"""torch's profiler: whether one runs."""

from __future__ import annotations

from torch.autograd import profiler


def is_profiling() -> bool:
    """Whether torch.profiler, or emit_nvtx, records this process.

    Reads one variable, which torch keeps for checks that cost nothing (torch/autograd/profiler.py).
    """
    return profiler._is_profiler_enabled
