"""Checks of the memory of the host."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import torch

from fxoffload import runtime
from fxoffload.cli.findings import Finding
from fxoffload.runtime.engines.memory_limit import find_memory_limit
from fxoffload.sizes import format_bytes

# One chunk of staging buffers, and the memory that a small process of torch takes.
LEAST_LOCKED_BYTES = 64 * 2**20
LEAST_MEMORY_BYTES = 4 * 2**30


def check_host() -> Iterator[Finding]:
    """All checks of this module."""
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    yield check_locked_memory(
        None if locked == resource.RLIM_INFINITY else locked, has_gpu=torch.cuda.is_available()
    )
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield check_memory(physical, find_memory_limit())
    yield check_malloc(runtime.count_live_bytes(torch.device("cpu")))


def check_locked_memory(limit_bytes: int | None, *, has_gpu: bool) -> Finding:
    """The limit on memory that a process may lock, which pinned staging buffers need; None: no."""
    if limit_bytes is None:
        return Finding("locked memory", "ok", "no limit")
    fact = f"limit of {format_bytes(limit_bytes)} (ulimit -l)"
    if not has_gpu:
        return Finding("locked memory", "ok", f"{fact}; only transfers of a GPU pin memory")
    if limit_bytes < LEAST_LOCKED_BYTES:
        remedy = "raise it: ulimit -l unlimited, or --ulimit memlock=-1 of a container"
        return Finding("locked memory", "warning", f"{fact}; pinning may be refused", remedy)
    return Finding("locked memory", "ok", fact)


def check_memory(physical_bytes: int, limit_bytes: int) -> Finding:
    """The memory that this process may use: of the machine, or the limit of its cgroup."""
    fact = f"{format_bytes(limit_bytes)} of this machine"
    if limit_bytes < physical_bytes:
        fact = f"{format_bytes(limit_bytes)} by the cgroup, of {format_bytes(physical_bytes)}"
    if limit_bytes < LEAST_MEMORY_BYTES:
        remedy = "give the machine or the container more memory; the compiler alone needs 2 GiB"
        return Finding("host memory", "warning", fact, remedy)
    return Finding("host memory", "ok", fact)


def check_malloc(live_bytes: int | None) -> Finding:
    """Whether malloc tells what is live, which `device_memory` on a CPU and schedules rely on."""
    if live_bytes is None:
        return Finding(
            "malloc",
            "warning",
            "the C library has no mallinfo2, so that live bytes of a CPU are not measured",
            "use a system with glibc 2.33 or later",
        )
    return Finding("malloc", "ok", f"mallinfo2 tells live bytes ({format_bytes(live_bytes)} now)")
