"""Clocks run between ops and stop within them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fxoffload.ops import OpEvent
from fxoffload.runtime.measurement.clocks import find_clocks, find_seconds, mark_now

# Ops that take 10 s each, and seconds of compute in front of them.
OPS = (
    ("offload", "a", 0.5), ("offload", "b", 1.0), ("release", "a", 2.0), ("release", "b", 4.0),
)  # fmt: skip
EXPECTED = {
    ("offload", "a"): 0.0, ("offload", "b"): 1.0, ("release", "a"): 3.0, ("release", "b"): 7.0,
}  # fmt: skip


@dataclass
class DeviceEvent:
    """What a torch.cuda.Event is to the clocks; it passes when it is waited for."""

    seconds: float
    device: str = "cuda:0"
    passed: bool = False

    def synchronize(self) -> None:
        self.passed = True

    def elapsed_time(self, end: DeviceEvent) -> float:
        assert end.passed
        assert self.device == end.device
        return 1e3 * (end.seconds - self.seconds)


def mark(devices: dict[str, str | None]) -> dict[OpEvent, tuple[Any, Any]]:
    """OPS as they ran, each on the device of its value; None is a CPU."""
    marks: dict[OpEvent, tuple[Any, Any]] = {}
    now = 1000.0
    for kind, name, compute in OPS:
        now += compute
        device = devices[name]
        enter, leave = now, now + 10.0
        if device is None:
            marks[kind, name] = enter, leave
        else:
            marks[kind, name] = DeviceEvent(enter, device), DeviceEvent(leave, device)
        now += 10.0
    return marks


@pytest.mark.parametrize("device", [None, "cuda:0"], ids=["cpu", "gpu"])
def test_the_clock_counts_compute_alone(device: str | None) -> None:
    assert find_clocks(mark({"a": device, "b": device})) == EXPECTED


@pytest.mark.parametrize("other", [None, "cuda:1"])
def test_devices_have_no_clock_in_common(other: str | None) -> None:
    """From the offload of b to the release of a, and from there to the release of b."""
    found = find_clocks(mark({"a": "cuda:0", "b": other}))
    assert found == dict.fromkeys(EXPECTED, 0.0)
    assert find_seconds(1.0, 3.5) == 2.5


def test_the_present_time_of_a_cpu_is_the_hosts() -> None:
    before = time.perf_counter()
    found = mark_now(torch.device("cpu"))
    assert isinstance(found, float)
    assert before <= found <= time.perf_counter()
