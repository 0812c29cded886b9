"""Seconds of a half: which of its clocks count; test_joining.py has them in a step."""

from __future__ import annotations

from fxoffload.planner.half_seconds import _leave_out_late


def test_the_longest_part_without_late_ops() -> None:
    assert _leave_out_late([]) == []
    clocks = [0.0, 1.0, 9.0, 2.0, 2.0, 8.0, 3.0, 4.0]
    kept = [0.0, 1.0, 2.0, 2.0, 3.0, 4.0]
    assert [clock for _, clock in _leave_out_late(list(enumerate(clocks)))] == kept
