"""Advice on measured steps: what is said of which numbers, once."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from fxoffload.runtime.program.advice import JUDGED_STEPS, Adviser, find_advice
from fxoffload.schedule import Flow, Half, HalfMeasurement, Schedule, StepMeasurement, TierFlow
from fxoffload.sizes import MIB

PROGRAM = (Half("a", 0, True), Half("a", 0, False))
NBYTES = 100 * MIB


def make_schedule(moved_bytes: int = NBYTES) -> Schedule:
    return Schedule(
        PROGRAM, (), None, 1, 1, 3.0, 0.0, NBYTES, moved_bytes, bandwidths={"nvme": (5e8, 1e9)}
    )


def make_steps(
    exposed_seconds: float = 0.0, write: float = 1e9, read: float = 1e9
) -> list[StepMeasurement]:
    """A second of forward, two of backward. write, read: bytes per second."""
    halves = [HalfMeasurement({("offload", "x"): 1.0}), HalfMeasurement({("wait", "x"): 2.0})]
    flow = TierFlow(Flow(NBYTES, NBYTES / write, 1), Flow(NBYTES, NBYTES / read, 1))
    step = StepMeasurement(
        halves, {"nvme": flow}, exposed_seconds=exposed_seconds, step_seconds=3.0 + exposed_seconds
    )
    return [step] * JUDGED_STEPS


def test_nothing_is_said_where_all_is_well() -> None:
    for exposed_seconds in (0.0, 0.3):
        steps = make_steps(exposed_seconds, write=1e6, read=1e6)
        for is_limited in (False, True):
            assert list(find_advice(make_schedule(), steps, is_limited=is_limited)) == []
    assert list(find_advice(make_schedule(0), make_steps(), is_limited=True)) == [], "it fits"


def test_waits_are_named_with_their_share() -> None:
    ((subject, text),) = find_advice(make_schedule(), make_steps(1.0), is_limited=True)
    assert subject == "waits"
    assert "for 1.000 of 4.000 s (25%, median of 3 measured steps)" in text


@pytest.mark.parametrize(
    ("write", "read", "words"),
    [
        (5e7, 1e9, "writes 100.0 MiB at 0.05 GB/s, beside forwards that compute for 1.000 s; 0.10"),
        (1e9, 4e7, "reads 100.0 MiB at 0.04 GB/s, beside backwards that compute for 2.000 s; 0.05"),
    ],
)  # fmt: skip
def test_a_slow_drive_is_named_with_the_speed_that_would_do(
    write: float, read: float, words: str
) -> None:
    _, (_, text) = find_advice(make_schedule(), make_steps(1.0, write, read), is_limited=True)
    assert text.startswith("the drive is too slow for the step: ")
    assert words in text


def test_a_step_from_which_nothing_moves_is_named_without_a_budget() -> None:
    ((_, text),) = find_advice(make_schedule(0), make_steps(), is_limited=False)
    assert "all 100.0 MiB that may move stay" in text
    assert "a step of 3.000 s, with 0.50 GB/s to nvme and 1.00 back" in text


def test_a_step_that_saves_nothing_is_not_named() -> None:
    schedule = replace(make_schedule(0), saved_bytes=0)
    assert list(find_advice(schedule, make_steps(), is_limited=False)) == []


def test_a_drive_that_moved_little_is_not_judged() -> None:
    flow = Flow(MIB, 100.0, 1)
    step = replace(make_steps(1.0)[0], flows={"nvme": TierFlow(flow, flow)})
    ((subject, _),) = find_advice(make_schedule(), [step] * JUDGED_STEPS, is_limited=True)
    assert subject == "waits"


def test_a_drive_is_not_judged_by_halves_without_compute() -> None:
    step = replace(make_steps(1.0)[0], halves=[HalfMeasurement({})] * 2)
    ((subject, _),) = find_advice(make_schedule(), [step] * JUDGED_STEPS, is_limited=True)
    assert subject == "waits"


def test_each_subject_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    adviser, steps = Adviser(), make_steps(1.0, write=5e7)
    adviser.judge(make_schedule(), steps[1:], is_limited=True)
    adviser.judge(None, steps, is_limited=True)
    assert not caplog.records, "nothing is known yet"
    for _ in range(3):
        adviser.judge(make_schedule(), steps, is_limited=True)
    assert [record.levelno for record in caplog.records] == 2 * [logging.WARNING]
    adviser.judge(make_schedule(), make_steps(1.0, read=4e7), is_limited=True)
    assert len(caplog.records) == 3, "another subject"
