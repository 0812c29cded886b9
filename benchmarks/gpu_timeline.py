"""Reads from a trace of torch.profiler how much of the copies of a step ran beside kernels."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.fresh_process import Record

# Categories of what runs on a GPU, and of what a host does that is worth a line beside it.
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
KEPT = (*ON_DEVICE, "user_annotation", "gpu_user_annotation")
DIRECTIONS = {"out": "DtoH", "in": "HtoD"}
Interval = tuple[float, float]


def record_timeline(step: Callable[[], object], path: Path) -> Record:
    """Trace one call of `step` into `path` (.json.gz), of the device alone; its overlap.

    The call before it starts the profiler. Without a GPU there is nothing in the trace.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "trace.json"
        with torch.profiler.profile(activities=activities):
            step()
        with torch.profiler.profile(activities=activities) as profile:
            step()
        profile.export_chrome_trace(str(raw))
        trace = json.loads(raw.read_text())
    events = trace["traceEvents"]
    trace["traceEvents"] = [e for e in events if e.get("cat") in KEPT or e.get("ph") == "M"]
    with gzip.open(path, "wt") as file:
        json.dump(trace, file)
    return {"trace": path.name, "trace_bytes": path.stat().st_size, **find_overlap(events)}


def find_overlap(events: Iterable[dict[str, Any]]) -> Record:
    """Seconds of kernels and of copies by direction, and the share of copies beside kernels.

    events: of a Chrome trace, in microseconds. overlap_share: of the time in which copies run;
    None without any. Copies within the device count as kernels: they are part of the compute.
    """
    spans: dict[str, list[Interval]] = {"compute": [], "out": [], "in": []}
    for event in events:
        if event.get("ph") != "X" or event.get("cat") not in ON_DEVICE:
            continue
        found = (name for name, text in DIRECTIONS.items() if text in event["name"])
        start = float(event["ts"])
        spans[next(found, "compute")].append((start, start + float(event["dur"])))
    compute, copies = merge(spans["compute"]), merge(spans["out"] + spans["in"])
    copied, beside = measure(copies), measure(intersect(copies, compute))
    seconds = {f"{name}_seconds": measure(merge(each)) / 1e6 for name, each in spans.items()}
    share = beside / copied if copied else None
    return {**seconds, "overlap_seconds": beside / 1e6, "overlap_share": share}


def merge(spans: Iterable[Interval]) -> list[Interval]:
    """The union, as intervals that do not touch, in their order."""
    merged: list[Interval] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def intersect(first: Sequence[Interval], second: Sequence[Interval]) -> list[Interval]:
    """What is in both; each of them is merged."""
    found: list[Interval] = []
    left = right = 0
    while left < len(first) and right < len(second):
        start = max(first[left][0], second[right][0])
        end = min(first[left][1], second[right][1])
        if start < end:
            found.append((start, end))
        if first[left][1] < second[right][1]:
            left += 1
        else:
            right += 1
    return found


def measure(spans: Iterable[Interval]) -> float:
    """The length of all together."""
    return sum(end - start for start, end in spans)
