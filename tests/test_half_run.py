"""What the halves of a step took, from the marks of their ops."""

from __future__ import annotations

from fxoffload.runtime.program.half_run import HalfRun, find_step_seconds, measure_halves
from fxoffload.schedule import Half, HalfMeasurement


def test_bytes_count_from_the_beginning_and_gaps_from_the_half_before() -> None:
    forward = HalfRun(Half("a", 0, True), held_bytes=100)
    forward.marks = {("offload", "x"): (1.0, 2.0), ("release", "x"): (3.5, 4.0)}
    forward.peak_bytes = {("offload", "x"): 130}
    forward.live_bytes = {("offload", "x"): 150}
    backward = HalfRun(Half("a", 0, False), held_bytes=110, gap_bytes=120)
    backward.marks = {("wait", "x"): (6.0, 7.0)}
    empty = HalfRun(Half("b", 1, True))
    last = HalfRun(Half("b", 1, False), thread=7)
    last.marks = {("wait", "y"): (8.0, 9.0)}
    assert find_step_seconds([forward, backward, empty, last]) == 8.0
    assert find_step_seconds([empty]) == 0.0
    assert measure_halves([forward, backward, empty, last], 100) == [
        HalfMeasurement(
            {("offload", "x"): 0.0, ("release", "x"): 1.5},
            0.0,
            0,
            None,
            {("offload", "x"): 30},
            {("offload", "x"): 50},
        ),
        HalfMeasurement({("wait", "x"): 0.0}, 2.0, 10, 20),
        HalfMeasurement({}),
        HalfMeasurement({("wait", "y"): 0.0}, 1.0, thread=7),
    ]
