"""How fast a device computes, and exchanges bytes with the host, from short probes."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fxoffload.runtime.measurement.bandwidth import Bandwidth, round_down
from fxoffload.runtime.measurement.probe_cache import recall_pair

log = logging.getLogger(__name__)

PROBE_SECONDS = 0.1  # For each number, warm-up not counted.
_MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}
_ROWS = 512  # Of a matrix that are filled at a time.
# More than caches hold, and little beside a model that fills the device.
_COPY_BYTES = {"cpu": 2**26, "cuda": 2**27}
_LEAST_SIZE = 512  # Below which a probe says nothing.
_EXCHANGE_BYTES = 2**26


class Speed(NamedTuple):
    """Operations per second of large matrix products; bytes per second read and written."""

    flops_per_second: float
    memory_bytes_per_second: float


def recall_speed(device: torch.device, dtype: torch.dtype) -> Speed:
    """What `device` sustains with matrices of `dtype`, by a probe that is made once on a machine.

    Of a CPU: with as many threads as torch uses now. Of float32 on a GPU: at torch's precision for
    products of such matrices now.
    """
    key = f"{describe_device(device)} {dtype} torch {torch.__version__}"
    if device.type == "cuda" and dtype is torch.float32:
        key += f" {torch.get_float32_matmul_precision()} precision"
    return Speed(*recall_pair(key, lambda: measure_speed(device, dtype)))


def describe_device(device: torch.device) -> str:
    """Host and name of a GPU; of a CPU its cores, and how many threads torch uses now."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{platform.node()} {device.type} {name}"


def recall_exchange(device: torch.device) -> Bandwidth:
    """Between pinned host memory and `device`, a GPU: written from it, and read back to it.

    By a probe that is made once on a machine.
    """
    key = f"{describe_device(device)} exchange torch {torch.__version__}"
    return Bandwidth(*recall_pair(key, lambda: measure_exchange(device)))


def measure_exchange(device: torch.device) -> Bandwidth:
    """The best of many copies in each direction, rounded down to two digits."""
    own = torch.zeros(_EXCHANGE_BYTES, dtype=torch.uint8, device=device)
    host = _make_host(_EXCHANGE_BYTES, pinned=device.type == "cuda")
    write = _find_least_seconds(lambda: host.copy_(own, non_blocking=True), device)
    read = _find_least_seconds(lambda: own.copy_(host, non_blocking=True), device)
    return Bandwidth(
        *(round_down(_EXCHANGE_BYTES / seconds, digits=2) for seconds in (write, read))
    )


def _make_host(nbytes: int, *, pinned: bool) -> torch.Tensor:
    """Host memory, pageable where pinning is refused: what moves later is then pageable too."""
    if pinned:
        try:
            return torch.zeros(nbytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            log.warning("the bus is measured with pageable memory, pinning is refused: %s", error)
    return torch.zeros(nbytes, dtype=torch.uint8)


def measure_speed(device: torch.device, dtype: torch.dtype) -> Speed:
    """The best of many short runs, rounded down to two digits: others may use the device too."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    # One after the other: the second may have the memory of the first.
    flops = _with_less_memory(
        _MATRIX_SIZE[kind], lambda size: _measure_products(size, device, dtype)
    )
    nbytes = _with_less_memory(_COPY_BYTES[kind], lambda nbytes: _measure_copies(nbytes, device))
    return Speed(round_down(flops, digits=2), round_down(nbytes, digits=2))


def _measure_products(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of products of square matrices."""
    # Not constant: that takes a GPU less power, and so less time. Not by the program's generator.
    generator = torch.Generator(device).manual_seed(0)
    left = torch.empty(size, size, dtype=dtype, device=device)
    for rows in left.split(_ROWS):  # Float32 numbers of all rows at once are more than the matrix.
        rows.copy_(torch.randn(rows.shape, device=device, generator=generator))
    product = torch.empty_like(left)
    seconds = _find_least_seconds(lambda: torch.mm(left, left, out=product), device)
    return 2 * size**3 / seconds


def _measure_copies(nbytes: int, device: torch.device) -> float:
    """Bytes per second read and written in a copy of `nbytes`."""
    source = torch.ones(nbytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / _find_least_seconds(lambda: target.copy_(source), device)


def _with_less_memory(size: int, measure: Callable[[int], float]) -> float:
    """`measure(size)`, or with half the size as often as a device's memory is too full for it."""
    while True:
        try:
            return measure(size)
        except torch.OutOfMemoryError:
            if size < _LEAST_SIZE:
                raise
        size //= 2  # Behind the handler, which keeps what the failed probe had.


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
