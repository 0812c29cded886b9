"""How fast a device computes, from one short probe."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fxoffload.runtime.bandwidth import round_down
from fxoffload.runtime.probe_cache import recall_pair

PROBE_SECONDS = 0.1  # For each of the two numbers, warm-up not counted.
_MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}
_COPY_BYTES = {"cpu": 2**26, "cuda": 2**30}


class Speed(NamedTuple):
    """Operations per second of large matrix products; bytes per second read and written."""

    flops_per_second: float
    memory_bytes_per_second: float


def recall_speed(device: torch.device, dtype: torch.dtype) -> Speed:
    """What `device` sustains with matrices of `dtype`, by a probe that is made once on a machine.

    Of a CPU: with as many threads as torch uses now.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    key = f"{platform.node()} {device.type} {name} {dtype} torch {torch.__version__}"
    return Speed(*recall_pair(key, lambda: measure_speed(device, dtype)))


def measure_speed(device: torch.device, dtype: torch.dtype) -> Speed:
    """The best of many short runs, rounded down to two digits: others may use the device too."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    size = _MATRIX_SIZE[kind]
    left = torch.ones(size, size, dtype=dtype, device=device)
    product = torch.empty_like(left)
    source = torch.ones(_COPY_BYTES[kind] // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    multiply = _find_least_seconds(lambda: torch.mm(left, left, out=product), device)
    copy = _find_least_seconds(lambda: target.copy_(source), device)
    return Speed(
        round_down(2 * size**3 / multiply, digits=2), round_down(2 * source.nbytes / copy, digits=2)
    )


def _find_least_seconds(run: Callable[[], Any], device: torch.device) -> float:
    def time_one() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    time_one()
    found: list[float] = []
    while not found or sum(found) < PROBE_SECONDS:
        found.append(time_one())
    return min(found)
