"""StepRecorder: its clock runs between ops and stops within them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from fxoffload.runtime.measurement.recorder import RUNS, SKIPPED_RUNS, StepRecorder

STEPS = SKIPPED_RUNS + RUNS


def record_step(recorder: StepRecorder, start: float, scale: float = 1.0) -> None:
    """Ops that take 10 s each, and compute of 1, 2 and 4 s between those of the forward."""
    now = start
    for kind, name, compute in (
        ("offload", "a", 0.5), ("offload", "b", 1.0), ("release", "a", 2.0), ("release", "b", 4.0),
        ("prefetch", "b", 0.5), ("prefetch", "a", 8.0), ("wait", "b", 16.0), ("wait", "a", 32.0),
    ):  # fmt: skip
        now += compute * scale
        recorder.record(kind, name, now, now + 10.0)
        now += 10.0


EXPECTED = {
    ("offload", "a"): 0.0, ("offload", "b"): 1.0, ("release", "a"): 3.0, ("release", "b"): 7.0,
    ("prefetch", "b"): 0.0, ("prefetch", "a"): 8.0, ("wait", "b"): 24.0, ("wait", "a"): 56.0,
}  # fmt: skip


def test_the_clock_counts_compute_alone() -> None:
    recorder = StepRecorder()
    for step in range(STEPS):
        assert recorder.find_clocks() is None
        record_step(recorder, 1000.0 * step)
    assert recorder.find_clocks() == EXPECTED


def test_the_first_step_does_not_count_and_the_median_does() -> None:
    recorder = StepRecorder()
    for step, scale in enumerate((100.0, 1.0, 50.0, 1.0)):
        record_step(recorder, 10_000.0 * step, scale)
    assert recorder.find_clocks() == EXPECTED


def test_two_forwards_before_two_backwards() -> None:
    recorder = StepRecorder()
    forward = [("offload", "a"), ("release", "a")]
    backward = [("prefetch", "a"), ("wait", "a")]
    for step in range(RUNS):
        now = 1000.0 * step
        for event in (*forward, *forward, *backward, *backward):
            recorder.record(*event, now + 3.0, now + 4.0)
            now += 4.0
    found = recorder.find_clocks()
    assert found == {**dict.fromkeys([forward[0], backward[0]], 0.0), forward[1]: 3.0,
                     backward[1]: 3.0}  # fmt: skip


def test_nothing_is_recorded_once_it_has_ended() -> None:
    recorder = StepRecorder()
    for step in range(STEPS):
        record_step(recorder, 1000.0 * step)
    found = recorder.find_clocks()
    for step in range(STEPS):
        record_step(recorder, 1000.0 * step, 7.0)
    assert recorder.find_clocks() == found == EXPECTED


def test_forwards_alone_are_not_enough() -> None:
    recorder = StepRecorder()
    for step in range(10):
        recorder.record("offload", "a", step, step)
        recorder.record("release", "a", step, step)
    assert recorder.find_clocks() is None


def test_threads_have_clocks_of_their_own() -> None:
    recorder = StepRecorder()
    recorder.record("offload", "a", 0.0, 0.0)
    other = threading.Thread(target=lambda: record_step(recorder, 500.0))
    other.start()
    other.join()
    for step in range(STEPS):
        record_step(recorder, 1000.0 * step)
    found = recorder.find_clocks()
    assert found == EXPECTED


@dataclass
class DeviceEvent:
    """What a torch.cuda.Event is to the recorder; it passes when it is waited for."""

    seconds: float
    device: str = "cuda:0"
    passed: bool = False

    def synchronize(self) -> None:
        self.passed = True

    def elapsed_time(self, end: DeviceEvent) -> float:
        assert end.passed
        assert self.device == end.device
        return 1e3 * (end.seconds - self.seconds)


class OnDevices(StepRecorder):
    """Turns the seconds of `record_step` into events of a GPU, or of what `elsewhere` names."""

    def __init__(self, elsewhere: dict[str, str | None]) -> None:
        super().__init__()
        self.elsewhere = elsewhere

    def record(self, kind: str, name: str, enter: Any, leave: Any) -> None:
        device = self.elsewhere.get(name, "cuda:0")
        if device is not None:
            enter, leave = DeviceEvent(enter, device), DeviceEvent(leave, device)
        super().record(kind, name, enter, leave)


def test_on_a_gpu_its_own_clock_counts() -> None:
    recorder = OnDevices({})
    for step in range(STEPS):
        record_step(recorder, 1000.0 * step)
    assert recorder.find_clocks() == EXPECTED


def test_devices_have_no_clock_in_common() -> None:
    for other in (None, "cuda:1"):  # None: a CPU.
        recorder = OnDevices({"b": other})
        for step in range(STEPS):
            record_step(recorder, 1000.0 * step)
        # In the forward "a" follows "b" and "b" follows "a"; in the backward they alternate, too.
        assert recorder.find_clocks() == dict.fromkeys(EXPECTED, 0.0)
