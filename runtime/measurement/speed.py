"""Measure the speed of a device, and of its copies to and from the host, by short probes."""

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

PROBE_SECONDS = 0.1  # For each number, without the warm-up.
_MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}
_ROWS = 512  # The number of rows of a matrix that are filled at a time.
# Larger than caches, and small beside a model that fills the device.
_COPY_BYTES = {"cpu": 2**26, "cuda": 2**27}
_LEAST_SIZE = 512  # A smaller probe would measure overhead.
_EXCHANGE_BYTES = 2**26


class Speed(NamedTuple):
    """The speed of a device.

    flops_per_second: of large matrix products. memory_bytes_per_second: read and written by copies.
    """

    flops_per_second: float
    memory_bytes_per_second: float


def recall_speed(device: torch.device, dtype: torch.dtype) -> Speed:
    """The Speed of `device` with matrices of `dtype`, by a probe, once on a machine.

    On a CPU it holds for the present number of torch's threads, and for float32 on a GPU, for the
    present torch.get_float32_matmul_precision().
    """
    key = f"{describe_device(device)} {dtype} torch {torch.__version__}"
    if device.type == "cuda" and dtype is torch.float32:
        key += f" {torch.get_float32_matmul_precision()} precision"
    return Speed(*recall_pair(key, lambda: measure_speed(device, dtype)))


def describe_device(device: torch.device) -> str:
    """The machine and the device as a key: a GPU's name, or the CPU's cores and torch's threads."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{platform.node()} {device.type} {name}"


def recall_exchange(device: torch.device) -> Bandwidth:
    """The bandwidth between the GPU `device` and pinned host memory, by a probe, once on a machine.

    write: from the GPU to the host. read: back to the GPU.
    """
    key = f"{describe_device(device)} exchange torch {torch.__version__}"
    return Bandwidth(*recall_pair(key, lambda: measure_exchange(device)))


def measure_exchange(device: torch.device) -> Bandwidth:
    """The best bandwidth of many copies in each direction, rounded down to two digits."""
    own = torch.zeros(_EXCHANGE_BYTES, dtype=torch.uint8, device=device)
    host = _make_host(_EXCHANGE_BYTES, pinned=device.type == "cuda")
    write = _find_least_seconds(lambda: host.copy_(own, non_blocking=True), device)
    read = _find_least_seconds(lambda: own.copy_(host, non_blocking=True), device)
    return Bandwidth(
        *(round_down(_EXCHANGE_BYTES / seconds, digits=2) for seconds in (write, read))
    )


def _make_host(nbytes: int, *, pinned: bool) -> torch.Tensor:
    """Host memory; pageable if pinning is refused, as staging buffers will be pageable then."""
    if pinned:
        try:
            return torch.zeros(nbytes, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            log.warning("the bus is measured with pageable memory, pinning is refused: %s", error)
    return torch.zeros(nbytes, dtype=torch.uint8)


def measure_speed(device: torch.device, dtype: torch.dtype) -> Speed:
    """The best Speed of many short runs, rounded down to two digits.

    Other programs may use the device and slow down some of the runs.
    """
    kind = "cuda" if device.type == "cuda" else "cpu"
    # The second probe runs after the first has freed its memory.
    flops = _with_less_memory(
        _MATRIX_SIZE[kind], lambda size: _measure_products(size, device, dtype)
    )
    nbytes = _with_less_memory(_COPY_BYTES[kind], lambda nbytes: _measure_copies(nbytes, device))
    return Speed(round_down(flops, digits=2), round_down(nbytes, digits=2))


def _measure_products(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of products of square matrices."""
    # Random numbers: with constant ones a GPU needs less power, and runs faster. By a generator of
    # the probe's own, so that the program's random numbers do not change.
    generator = torch.Generator(device).manual_seed(0)
    left = torch.empty(size, size, dtype=dtype, device=device)
    for rows in left.split(_ROWS):  # All rows at once, in float32, could exceed the matrix's bytes.
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
    """`measure(size)`; halves `size` as long as the memory of the device is too full for it."""
    while True:
        try:
            return measure(size)
        except torch.OutOfMemoryError:
            if size < _LEAST_SIZE:
                raise
        size //= 2  # Retry outside of the handler, whose exception references the probe's tensors.


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
