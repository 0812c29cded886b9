"""Observe CUDA's allocator: call a function when a device runs out of memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

Observer = Callable[[int, int, int, int], None]


def watch_out_of_memory(observer: Observer) -> bool:
    """Call observer(device index, requested bytes, device bytes, free bytes) at each failure.

    The call precedes torch.OutOfMemoryError, in the allocating thread, without a lock of the
    allocator. An observer cannot be removed. Returns False if torch is built without CUDA.
    Source: OutOfMemoryObserver in c10/cuda/CUDACachingAllocator.h.
    """
    attach = getattr(torch._C, "_cuda_attach_out_of_memory_observer", None)
    if attach is None:
        return False
    attach(observer)
    return True
