"""The words of a step, and what a schedule says of itself."""

from __future__ import annotations

from fxoffload.schedule import CallSchedule, Half, Schedule

MIB = 2**20


def test_a_schedule_says_what_it_does() -> None:
    program = (Half("a", 0, True), Half("b", 1, True), Half("b", 1, False), Half("a", 0, False))
    schedule = Schedule(
        program,
        (CallSchedule({"x": "keep"}), CallSchedule({"y": "nvme"})),
        budget_bytes=30 * MIB,
        peak_bytes=29 * MIB,
        unmoved_peak_bytes=40 * MIB,
        step_seconds=1.5,
        exposed_seconds=0.25,
        saved_bytes=20 * MIB,
        moved_bytes=12 * MIB,
    )
    assert str(schedule) == (
        "step of 2 call(s) of 2 graph(s): moves 12.0 of 20.0 MiB saved; predicted peak 29.0 MiB "
        "(40.0 MiB with nothing moved) under a budget of 30.0 MiB, 1.500 s, 0.250 s of it exposed"
    )
