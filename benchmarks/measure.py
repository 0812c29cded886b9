"""Measures the memory of steps and of processes, for the demo and for the benchmarks.

Activation peak: the highest allocated bytes during forward and backward, minus those before. On
CUDA, torch's allocator reports it. On a CPU, a thread reads malloc's counters (glibc) every
SAMPLE_SECONDS, as torch's profiler does not see memory that other threads free, such as those of
the store after a write. A shorter peak may be missed, so the highest of several steps counts.
Python's own objects count as well.
"""

from __future__ import annotations

import gc
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from fxoffload.runtime.program.live_bytes import count_live_bytes

SAMPLE_SECONDS = 0.05e-3
PEAK_STEPS = 3


@dataclass(frozen=True, slots=True)
class MemoryCurve:
    """Live bytes of one device through a step, relative to its start.

    nbytes[i] holds from seconds[i] to seconds[i + 1]. backward_seconds: when the backward starts.
    """

    seconds: tuple[float, ...]
    nbytes: tuple[int, ...]
    peak_bytes: int
    backward_seconds: float | None = None


class Loss(Protocol):
    """What the forward of a step returns."""

    def backward(self) -> None:
        """The backward."""
        ...

    def detach(self) -> torch.Tensor:
        """The loss without its graph."""
        ...


def record_step(compute_loss: Callable[[], Loss], device: torch.device) -> MemoryCurve:
    """The memory curve of one forward and backward; gradients should be None before it."""
    marks: list[float] = []

    def step() -> torch.Tensor:
        start = time.perf_counter()
        loss = compute_loss()
        marks.append(time.perf_counter() - start)
        loss.backward()
        return loss.detach()

    return replace(record_memory(step, device), backward_seconds=marks[0])


def record_memory(step: Callable[[], object], device: torch.device | None = None) -> MemoryCurve:
    """The memory curve of `step()` on `device` (default: CPU)."""
    on_cuda = device is not None and device.type == "cuda"
    gc.collect()  # Otherwise the step may free garbage, which would hide memory that it allocates.
    if on_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    count = partial(torch.cuda.memory_allocated, device) if on_cuda else count_allocated_bytes
    stopped, start = threading.Event(), time.perf_counter()
    samples = [(0.0, count())]

    def sample() -> None:
        while not stopped.wait(SAMPLE_SECONDS):
            samples.append((time.perf_counter() - start, count()))

    with ThreadPoolExecutor(1, "memory sampler") as thread:
        sampling = thread.submit(sample)
        try:
            result = step()
            if on_cuda:
                torch.cuda.synchronize(device)
        finally:
            stopped.set()
        sampling.result()
    samples.append((time.perf_counter() - start, count()))
    del result
    seconds, live = zip(*samples, strict=True)
    before_bytes = live[0]
    peak_bytes = torch.cuda.max_memory_allocated(device) if on_cuda else max(live)
    nbytes = tuple(number - before_bytes for number in live)
    return MemoryCurve(seconds, nbytes, peak_bytes - before_bytes)


def record_highest_step(
    compute_loss: Callable[[], Loss], model: torch.nn.Module, device: torch.device
) -> MemoryCurve:
    """The curve of the highest peak of PEAK_STEPS steps of `model`, whose gradients are dropped.

    On CUDA of one step, as its peak is exact.
    """
    curves: list[MemoryCurve] = []
    for _ in range(1 if device.type == "cuda" else PEAK_STEPS):
        model.zero_grad()
        curves.append(record_step(compute_loss, device))
    model.zero_grad()
    return max(curves, key=lambda curve: curve.peak_bytes)


def count_allocated_bytes() -> int:
    """Bytes that this process has from malloc. Raises OSError if malloc does not report them."""
    nbytes = count_live_bytes(torch.device("cpu"))
    if nbytes is None:
        raise OSError("memory on a CPU is measured by mallinfo2, which glibc has since 2.33")
    return nbytes


def peak_rss_bytes() -> int:
    """The largest resident set of this process since it started."""
    match = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None, "the kernel reports no VmHWM"
    return int(match[1]) * 1024


def find_cpu_model() -> str:
    """The processor's name as the kernel gives it."""
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else os.uname().machine
