"""benchmarks/gpu_timeline.py on made-up traces, and on a trace of a CPU."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.gpu_timeline import find_overlap, intersect, merge, record_timeline


def make_event(cat: str, name: str, start: float, seconds: float) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": seconds}


def test_overlap_of_a_made_up_trace() -> None:
    events = [
        make_event("kernel", "mm", 0, 10),
        make_event("kernel", "mm on another stream", 5, 10),
        make_event("kernel", "mm", 30, 10),
        make_event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 10, 10),  # Half beside kernels.
        make_event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 32, 4),
        make_event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 38, 6),
        make_event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 42, 1),  # It is compute.
        make_event("cpu_op", "aten::mm", 0, 100),
        {"ph": "M", "name": "process_name"},
    ]
    found = find_overlap(events)
    assert found == {
        "compute_seconds": pytest.approx(26e-6),
        "out_seconds": pytest.approx(10e-6),
        "in_seconds": pytest.approx(10e-6),
        "overlap_seconds": pytest.approx(12e-6),
        "overlap_share": pytest.approx(0.6),
    }


def test_without_copies_there_is_no_share() -> None:
    assert find_overlap([make_event("kernel", "mm", 0, 10)])["overlap_share"] is None
    assert find_overlap([])["compute_seconds"] == 0


def test_intervals() -> None:
    assert merge([(3, 4), (0, 1), (1, 2), (0.5, 0.6)]) == [(0, 2), (3, 4)]
    assert intersect([(0, 2), (3, 4)], [(1, 3.5), (3.6, 9)]) == [(1, 2), (3, 3.5), (3.6, 4)]


def test_the_trace_holds_the_device_alone(tmp_path: Path) -> None:
    steps: list[int] = []

    def step() -> None:
        with torch.profiler.record_function("one step"):
            steps.append(torch.ones(8).add(1).numel())

    path = tmp_path / "timeline.json.gz"
    record = record_timeline(step, path)
    assert record["trace"] == path.name
    assert record["trace_bytes"] == path.stat().st_size > 0
    assert record["overlap_share"] is None
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event["ph"] == "X"]
    assert "one step" in names
    assert "aten::add" not in names
    assert len(steps) == 2  # The first one starts the profiler.
