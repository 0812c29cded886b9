"""What was seen since an op belongs to it; what was seen between two halves to the later one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from waiting import wait_until

from fxoffload.runtime.program import live_watch
from fxoffload.runtime.program.half_run import HalfRun
from fxoffload.runtime.program.live_watch import Held, LiveWatch
from fxoffload.schedule import Half

CPU = torch.device("cpu")
FIRST, SECOND = ("offload", "x"), ("release", "x")


class Device:
    """Tells what it holds, and notes how often it was asked."""

    def __init__(self) -> None:
        self.held: Held | None = Held(0, 0)
        self.asked = 0

    def __call__(self) -> Held | None:
        self.asked += 1
        return self.held

    def hold(self, live_bytes: int, held_bytes: int) -> None:
        """Until a sample that began behind this has been taken."""
        self.held = Held(live_bytes, held_bytes)
        asked = self.asked
        wait_until(lambda: self.asked > asked + 1)


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def watch(device: Device) -> Iterator[LiveWatch]:
    found = LiveWatch(device, CPU)
    yield found
    found.stop()


def test_what_was_seen_belongs_to_the_op_before(watch: LiveWatch, device: Device) -> None:
    forward, backward = HalfRun(Half("a", 0, True)), HalfRun(Half("a", 0, False))
    device.hold(50, 5)
    watch.note_op(forward, FIRST)
    device.hold(90, 9)
    device.hold(70, 7)
    watch.note_op(forward, SECOND)
    device.hold(80, 8)
    watch.note_half(backward, Held(85, 0))
    assert forward.live_bytes == {FIRST: 90, SECOND: 85}
    assert forward.peak_bytes == {FIRST: 9}, "behind the last op the gap begins"
    assert backward.gap_bytes == 8
    assert backward.unseen_seconds > 0.0
    device.hold(99, 99)
    watch.note_op(backward, FIRST)
    assert (forward.live_bytes, backward.live_bytes) == ({FIRST: 90, SECOND: 85}, {})


def test_a_peak_that_no_sample_saw(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to the op before it; what is below the highest so far adds nothing."""
    peaks = [999]
    monkeypatch.setattr(live_watch, "restart_peak", lambda device: peaks.__setitem__(0, 100))
    monkeypatch.setattr(live_watch, "find_peak_bytes", lambda device: peaks[0])
    watch = LiveWatch(device, CPU)
    forward, backward = HalfRun(Half("a", 0, True)), HalfRun(Half("a", 0, False))
    device.hold(50, 5)
    watch.note_op(forward, FIRST)
    peaks[0] = 300
    watch.note_op(forward, SECOND)
    device.hold(80, 8)
    watch.note_half(backward, None)
    watch.stop()
    assert forward.live_bytes == {FIRST: 300, SECOND: 80}
    assert 300 not in forward.peak_bytes.values(), "nobody knows whose they were"


def test_a_device_that_does_not_tell(device: Device) -> None:
    device.held = None
    watch = LiveWatch(device, CPU)
    run = HalfRun(Half("a", 0, True))
    watch.note_op(run, FIRST)
    watch.note_half(run, None)
    watch.note_op(run, SECOND)
    assert (run.live_bytes, run.peak_bytes, run.gap_bytes) == ({}, {}, None)


def test_nobody_looks_behind_the_end(watch: LiveWatch, device: Device) -> None:
    device.hold(50, 5)
    watch.stop()
    assert watch._sampler._stopped.is_set()
