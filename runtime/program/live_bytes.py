"""Bytes that are live on a device, as its allocator counts them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch

from fxoffload.runtime.engines.memory_limit import find_memory_limit


def count_live_bytes(device: torch.device) -> int | None:
    """Bytes that are allocated on `device`; None if nothing counts them.

    On a CPU these are the bytes that this process has from malloc, in its heaps and in mappings of
    single blocks, which glibc reports since 2.33 (mallinfo2).
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    ask = _find_malloc_info()
    if device.type != "cpu" or ask is None:
        return None
    info = ask()
    return info.uordblks + info.hblkhd


def restart_peak(device: torch.device) -> None:
    """Restart the peak that find_peak_bytes returns: torch's own statistic of the device."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def find_peak_bytes(device: torch.device) -> int | None:
    """The most that tensors held since `restart_peak`; None where the allocator keeps no peak."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def count_foreign_bytes(device: torch.device) -> int:
    """Bytes that the allocator of `device` does not count: other programs, contexts of CUDA."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def find_device_bytes(device: torch.device) -> int:
    """All memory of `device`; of a CPU what this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return find_memory_limit()


class _MallocInfo(ctypes.Structure):
    """struct mallinfo2 of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


@cache
def _find_malloc_info() -> Callable[[], _MallocInfo] | None:
    # PyDLL keeps the interpreter lock, so that no other Python code runs between two counts.
    function = getattr(ctypes.PyDLL(None), "mallinfo2", None)
    if function is not None:
        function.restype = _MallocInfo
    return function
