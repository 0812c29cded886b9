"""What is known of one program: when its next step is measured, and what it is assumed to take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fxoffload.runtime.program.calls import StepRun
from fxoffload.runtime.program.comparison import CHANGED_SECONDS, SETTLED_SECONDS
from fxoffload.runtime.program.learned import (
    FIRST_STEPS,
    KEPT_STEPS,
    MEASURED_EACH,
    SETTLED_STEPS,
    TRIED_EACH,
    TRIED_STEPS,
    UNSEEN_SECONDS,
    Learned,
)
from fxoffload.runtime.program.sampler import CLOSE_RATE, RATE, Rate
from fxoffload.schedule import Flow, HalfMeasurement, Schedule, StepMeasurement, TierFlow

EVENT = "offload", "x"
SCHEDULE = Schedule((), (), 1000, 900, 2000, 1.0, 0.0, 100, 0)


def make_step(followed: Schedule | None, *limits: bool) -> StepRun:
    """One that nobody measures, of two calls, of which by default only one has a budget."""
    step = StepRun([], measures=False)
    for is_limited in limits or (True, False):
        step.add_call("a", torch.device("cpu"), is_limited=is_limited)
    step.followed = followed
    return step


@pytest.mark.parametrize(
    ("steps", "doubts", "measures"),
    [
        (SETTLED_STEPS - 1, False, True),
        (SETTLED_STEPS, False, False),
        (SETTLED_STEPS, True, True),
        (MEASURED_EACH - 1, False, False),
        (3 * MEASURED_EACH, False, True),
    ],
)
def test_steps_that_are_measured(steps: int, doubts: bool, measures: bool) -> None:
    assert Learned(steps=steps, doubts=doubts).measures == measures


def test_of_the_measured_steps_some_are_sampled_and_some_are_not() -> None:
    """Two or more of either kind in a row of them, without those that only correct the seconds."""
    learned, rates = Learned(), list[Rate | None]()
    for _ in range(2 * SETTLED_STEPS + KEPT_STEPS):
        rates.append(learned.rate)
        learned.note(make_step(None), StepMeasurement([], sampled=rates[-1] is not None))
    assert rates[:3] == [RATE, CLOSE_RATE, None], "in the first step, graphs are compiled"
    first, settled = rates[:FIRST_STEPS], rates[SETTLED_STEPS - 1 :]
    assert first.count(None) == 2
    assert rates[FIRST_STEPS : SETTLED_STEPS - 1] == [None] * (SETTLED_STEPS - 1 - FIRST_STEPS)
    assert settled[0] == CLOSE_RATE
    for start in range(len(settled) - KEPT_STEPS + 1):
        kept = settled[start : start + KEPT_STEPS]
        assert 2 <= kept.count(None) <= KEPT_STEPS - 2
    assert set(settled[1:]) == {None, RATE}, "a run is not slowed for ever"


@pytest.mark.parametrize(
    ("unseen_seconds", "limited", "closely"),
    [
        ([9.0, 9.0, 9.0, 9.0], True, [1, 2, 3, 4, 9]),
        ([9.0, 9.0, UNSEEN_SECONDS], True, [1, 2, 3, 9]),
        ([9.0, UNSEEN_SECONDS, 9.0, 9.0], True, [1, 3, 9]),
        ([9.0, 9.0, 9.0, 9.0], False, [1, 3, 9]),
    ],
)
def test_under_a_budget_steps_are_sampled_until_one_is_seen_through(
    unseen_seconds: list[float], limited: bool, closely: list[int]
) -> None:
    """Each of the first ones; those behind them are for the seconds."""
    learned, rates = Learned(), list[Rate | None]()
    for index in range(SETTLED_STEPS + 1):
        rates.append(learned.rate)
        unseen = unseen_seconds[index] if index < len(unseen_seconds) else 0.0
        latest = StepMeasurement([], sampled=rates[-1] is not None, unseen_seconds=unseen)
        learned.note(make_step(None, limited), latest)
    assert [index for index, rate in enumerate(rates) if rate == CLOSE_RATE] == closely


def test_the_seconds_of_the_first_steps_are_corrected_when_they_have_settled() -> None:
    shares = {Learned(measured=n).changed_seconds for n in (SETTLED_STEPS - 2, SETTLED_STEPS)}
    assert shares == {CHANGED_SECONDS}
    settled = Learned()
    while settled.measured < SETTLED_STEPS - 1:
        settled.note(make_step(None), StepMeasurement([], sampled=settled.rate is not None))
    assert settled.changed_seconds == SETTLED_SECONDS
    assert not any(record.sampled for record in settled.records), "these are the quick steps"


def test_steps_that_are_compared_for_a_price_are_not_sampled() -> None:
    """Neither those that move everything nor the others, beside the second one."""
    schedule = replace(SCHEDULE, price=1e-9, saved_bytes=100, moved_bytes=10)
    learned, rates, tried = Learned(steps=1, measured=1), list[Rate | None](), list[bool]()
    learned.schedule = schedule
    unlimited = make_step(None, False, False)
    for _ in range(1, TRIED_STEPS[-1] + 4):
        rates.append(learned.rate)
        tried.append(learned.tries)
        learned.steps += 1
        learned.note(unlimited, StepMeasurement([]))
    assert rates[: TRIED_STEPS[-1] + 1] == [CLOSE_RATE, *[None] * TRIED_STEPS[-1]]
    assert set(rates[TRIED_STEPS[-1] + 1 :]) == {None, RATE}
    assert [number for number, tries in enumerate(tried, 1) if tries] == list(TRIED_STEPS)
    for later in (TRIED_EACH, 2 * TRIED_EACH):
        tries = [Learned(steps=later + n, schedule=schedule).tries for n in range(TRIED_EACH)]
        assert [number for number, each in enumerate(tries) if each] == list(TRIED_STEPS)
        assert all(
            Learned(steps=later + n, schedule=schedule).measures for n in (0, 2, 4, 6, 8, 10)
        )


def test_the_price_is_the_measured_one_or_that_of_the_schedule() -> None:
    learned = Learned(steps=2)
    assert (learned.measured_price, learned.price) == (None, 0.0)
    learned.schedule = replace(SCHEDULE, price=0.25)
    assert learned.price == 0.25
    flows = {"nvme": TierFlow(Flow(10, 1.0, 1), Flow(10, 1.0, 1))}
    for _ in range(4):
        learned.note(make_step(None, False), StepMeasurement([], flows, step_seconds=12.0))
        learned.steps += 1
        learned.note(make_step(SCHEDULE, False), StepMeasurement([], step_seconds=2.0))
        learned.steps += 1
    assert learned.measured_price == learned.price == 0.5
    learned.limited = True
    assert (learned.measured_price, learned.price) == (None, 0.25)


def test_sampled_steps_tell_no_price() -> None:
    learned = Learned(steps=2, schedule=SCHEDULE)
    for sampled in (True, False):
        learned.note(make_step(SCHEDULE), StepMeasurement([], step_seconds=2.0, sampled=sampled))
    assert len(learned.samples.steps) == 1


def test_what_is_assumed_grows_until_a_step_of_that_size_is_measured() -> None:
    learned = Learned()
    assert not learned.grow({"a": {"x": 10}}), "nothing is assumed yet"
    learned.assumed = StepMeasurement([HalfMeasurement({}, held_bytes=5)], sizes=learned.sizes)
    learned.records.append(learned.assumed)
    learned.sampled.append(learned.assumed)
    assert not learned.grow({"a": {"x": 7}})
    assert learned.grow({"a": {"x": 40}})
    assert learned.guessed
    assert learned.assumed.halves[0].held_bytes == 20
    assert learned.sizes == {"a": {"x": 40}}
    learned.excess_bytes = 9
    learned.forget_guess()
    assert (learned.assumed, learned.excess_bytes) == (None, 0)
    assert (len(learned.records), len(learned.sampled)) == (0, 0)
    learned.assumed = StepMeasurement([])
    learned.forget_guess()
    assert learned.assumed is not None, "it is no guess"


def test_steps_that_moved_everything_are_no_measure_of_those_that_do_not() -> None:
    learned = Learned(steps=2, schedule=SCHEDULE)
    for followed in (None, None, SCHEDULE):
        learned.note(make_step(followed), StepMeasurement([], step_seconds=2.0))
    assert len(learned.records) == 2, "the first one, as nothing else is known, and the last one"
    assert learned.limited, "one budget is enough"


def test_the_first_step_tells_no_price() -> None:
    learned = Learned(steps=1)
    learned.note(make_step(None), StepMeasurement([], step_seconds=2.0))
    assert not learned.samples.steps


def test_the_largest_excess_counts() -> None:
    learned = Learned(steps=3, schedule=SCHEDULE)
    for live_bytes in (910, 950, 905):
        half = HalfMeasurement({}, live_bytes={EVENT: live_bytes})
        learned.note(make_step(SCHEDULE), StepMeasurement([half]))
    assert learned.excess_bytes == 50


def test_what_was_held_unknown_in_front_of_the_first_graph_is_no_excess() -> None:
    """The next schedule knows it; the rest of what exceeded the peak stays unexplained."""
    learned = Learned(steps=1, schedule=SCHEDULE)
    learned.assumed = StepMeasurement([HalfMeasurement({}, held_bytes=0)])
    half = HalfMeasurement({}, held_bytes=30, live_bytes={EVENT: 950})
    learned.note(make_step(SCHEDULE), StepMeasurement([half]))
    assert learned.excess_bytes == 20
