"""CUDA's allocator: a call when a device is out of memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

Observer = Callable[[int, int, int, int], None]


def watch_out_of_memory(observer: Observer) -> bool:
    """Call observer(device index, bytes asked for, bytes of the device, bytes free) each time.

    It is called before torch.OutOfMemoryError is raised, in the thread that asked, without a lock
    of the allocator, and cannot be taken away. Returns False where torch is built without CUDA.
    Source: OutOfMemoryObserver in c10/cuda/CUDACachingAllocator.h.
    """
    attach = getattr(torch._C, "_cuda_attach_out_of_memory_observer", None)
    if attach is None:
        return False
    attach(observer)
    return True
