"""Bytes that are live on a device, as its allocator counts them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch


def count_live_bytes(device: torch.device) -> int | None:
    """What tensors and others hold on `device`; None where nobody counts that.

    On a CPU what this process has from malloc, which glibc tells since 2.33 (mallinfo2): in its
    heaps, and in mappings of single blocks.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    ask = _find_malloc_info()
    if device.type != "cpu" or ask is None:
        return None
    info = ask()
    return info.uordblks + info.hblkhd


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
    # PyDLL holds the interpreter lock: nothing of the program runs between this and what is asked
    # next.
    function = getattr(ctypes.PyDLL(None), "mallinfo2", None)
    if function is not None:
        function.restype = _MallocInfo
    return function
