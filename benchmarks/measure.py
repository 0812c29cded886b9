"""How memory and time are measured, for the demo and for the benchmarks.

Activation peak: the peak of torch's allocator over forward and backward, minus what was live
before. On CPU it comes from the allocation events of torch.profiler, which misses two kinds of
frees: of memory older than the measurement, and in threads of others (the store's, after a write).
The latter count as live until their address is allocated again. So a peak can be overstated, by
what moves above all, and is never understated.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

MIB = 2**20
# Values of c10::DeviceType, which the trace gives as numbers.
_DEVICE_TYPES = {"cpu": 0, "cuda": 1}
_BACKWARD = "fxoffload measured backward"


@dataclass(frozen=True, slots=True)
class MemoryCurve:
    """Live bytes of one device through a step, relative to its start.

    nbytes[i] holds from seconds[i] to seconds[i + 1]. backward_seconds: when the backward starts.
    unseen_free_bytes: freed in a thread not seen, and noticed when their address came back.
    """

    seconds: tuple[float, ...]
    nbytes: tuple[int, ...]
    peak_bytes: int
    backward_seconds: float | None = None
    unseen_free_bytes: int = 0

    def as_record(self) -> dict[str, Any]:
        """The fields as JSON can hold them; `MemoryCurve(**record)` is the inverse."""
        return asdict(self)


def record_step(compute_loss: Callable[[], torch.Tensor], device: torch.device) -> MemoryCurve:
    """The memory curve of one forward and backward; gradients should be None before it."""

    def step() -> torch.Tensor:
        loss = compute_loss()
        with record_function(_BACKWARD):
            loss.backward()
        return loss.detach()

    return record_memory(step, device)


def record_memory(step: Callable[[], object], device: torch.device | None = None) -> MemoryCurve:
    """The memory curve of `step()` on `device` (default: CPU)."""
    device = device or torch.device("cpu")
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    before_bytes = 0
    if on_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before_bytes = torch.cuda.memory_allocated(device)
    with profile(activities=activities, profile_memory=True) as profiler:
        result = step()
        if on_cuda:
            torch.cuda.synchronize(device)
    del result
    curve = build_curve(_read_trace(profiler), device)
    if not on_cuda:
        return curve
    peak_bytes = torch.cuda.max_memory_allocated(device) - before_bytes
    return MemoryCurve(curve.seconds, curve.nbytes, peak_bytes, curve.backward_seconds)


def build_curve(events: Iterable[Mapping[str, Any]], device: torch.device) -> MemoryCurve:
    """The curve from the events of a chrome trace."""
    events = sorted((event for event in events if "ts" in event), key=lambda event: event["ts"])
    start = events[0]["ts"] if events else 0.0
    live_blocks: dict[int, int] = {}
    seconds, nbytes = [0.0], [0]
    live = unseen = 0
    backward_seconds = None
    for event in events:
        moment = (event["ts"] - start) / 1e6
        if event["name"] == _BACKWARD and backward_seconds is None:
            backward_seconds = moment
        if event["name"] != "[memory]":
            continue
        fields = event["args"]
        if fields["Device Type"] != _DEVICE_TYPES[device.type]:
            continue
        change, address = fields["Bytes"], fields["Addr"]
        if change > 0:
            lost = live_blocks.pop(address, 0)  # Freed since then, in a thread not seen.
            unseen += lost
            live -= lost
            live_blocks[address] = change
        else:
            live_blocks.pop(address, None)
        live += change
        seconds.append(moment)
        nbytes.append(live)
    return MemoryCurve(tuple(seconds), tuple(nbytes), max(nbytes), backward_seconds, unseen)


def peak_rss_bytes() -> int:
    """The largest resident set of this process since it started."""
    status = Path("/proc/self/status").read_text()
    match = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert match is not None, "the kernel reports no VmHWM"
    return int(match[1]) * 1024


def find_cpu_model() -> str:
    """The processor's name as the kernel gives it."""
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else os.uname().machine


def _read_trace(profiler: profile) -> list[dict[str, Any]]:
    # The exported trace is torch's public form of the allocation events.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text(errors="replace"))["traceEvents"]
