"""The words of a step, and what a schedule says of itself."""

from __future__ import annotations

from fxoffload.schedule import (
    CallSchedule,
    Flow,
    Half,
    HalfMeasurement,
    Owners,
    Schedule,
    StepMeasurement,
    TierFlow,
)
from fxoffload.sizes import MIB


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


def test_what_a_step_took() -> None:
    event, later = ("offload", "x"), ("release", "x")
    first = HalfMeasurement({event: 0.0, later: 2.0}, 0.5, live_bytes={event: 7, later: 5})
    flows = {"host": TierFlow(Flow(1), Flow(20)), "nvme": TierFlow(Flow(300), Flow(4000, 2.0))}
    step = StepMeasurement([first, HalfMeasurement({}, 0.5)], flows)
    assert [half.seconds for half in step.halves] == [2.5, 0.5]
    assert (step.live_bytes, step.moved_bytes) == (7, 4321)
    assert StepMeasurement([]).live_bytes is None
    assert (flows["nvme"].read.speed, flows["nvme"].write.speed) == (2000.0, 0.0)


def test_the_latest_step_tells_who_holds_a_value() -> None:
    known = Owners((((0, "x"), (1, "x")),), held=frozenset({(0, "x"), (1, "x")}))
    latest = Owners((((0, "y"), (1, "y")),), let_go=frozenset({(0, "x")}))
    found = known.update(latest)
    assert found == Owners(latest.shared, frozenset({(1, "x")}), latest.let_go)
    again = found.update(Owners(held=frozenset({(0, "x")})))
    assert (again.held, again.let_go) == (known.held, frozenset())
