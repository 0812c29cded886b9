"""What is known of one program: when its next step is measured, and what it is assumed to take."""

from __future__ import annotations

import pytest
import torch

from fxoffload.runtime.program.calls import StepRun
from fxoffload.runtime.program.learned import FIRST_STEPS, KEPT_STEPS, MEASURED_EACH, Learned
from fxoffload.runtime.program.sampler import CLOSE_RATE, RATE, Rate
from fxoffload.schedule import HalfMeasurement, Schedule, StepMeasurement

EVENT = "offload", "x"
SCHEDULE = Schedule((), (), 1000, 900, 2000, 1.0, 0.0, 100, 0)


def make_step(followed: Schedule | None) -> StepRun:
    """One that nobody measures, of two calls, of which only one has a budget."""
    step = StepRun([], measures=False)
    for is_limited in (True, False):
        step.add_call("a", torch.device("cpu"), is_limited=is_limited)
    step.followed = followed
    return step


@pytest.mark.parametrize(
    ("steps", "doubts", "measures"),
    [
        (FIRST_STEPS - 1, False, True),
        (FIRST_STEPS, False, False),
        (FIRST_STEPS, True, True),
        (MEASURED_EACH - 1, False, False),
        (3 * MEASURED_EACH, False, True),
    ],
)
def test_steps_that_are_measured(steps: int, doubts: bool, measures: bool) -> None:
    assert Learned(steps=steps, doubts=doubts).measures == measures


def test_one_of_the_kept_steps_was_sampled_closely() -> None:
    """Not the first one, which compilers make slow anyway, and never most of them."""
    learned, rates = Learned(), list[Rate]()
    for _ in range(5 * KEPT_STEPS):
        rates.append(learned.rate)
        learned.note(make_step(None), StepMeasurement([]))
    assert rates[:2] == [RATE, CLOSE_RATE]
    for first in range(len(rates) - KEPT_STEPS + 1):
        assert 1 <= rates[first : first + KEPT_STEPS].count(CLOSE_RATE) < KEPT_STEPS / 2


def test_what_is_assumed_grows_until_a_step_of_that_size_is_measured() -> None:
    learned = Learned()
    assert not learned.grow({"a": {"x": 10}}), "nothing is assumed yet"
    learned.assumed = StepMeasurement([HalfMeasurement({}, held_bytes=5)], sizes=learned.sizes)
    learned.records.append(learned.assumed.halves)
    assert not learned.grow({"a": {"x": 7}})
    assert learned.grow({"a": {"x": 40}})
    assert learned.guessed
    assert learned.assumed.halves[0].held_bytes == 20
    assert learned.sizes == {"a": {"x": 40}}
    learned.excess_bytes = 9
    learned.forget_guess()
    assert (learned.assumed, len(learned.records), learned.excess_bytes) == (None, 0, 0)
    learned.assumed = StepMeasurement([])
    learned.forget_guess()
    assert learned.assumed is not None, "it is no guess"


def test_steps_that_moved_everything_are_no_measure_of_those_that_do_not() -> None:
    learned = Learned(steps=2, schedule=SCHEDULE)
    for followed in (None, None, SCHEDULE):
        learned.note(make_step(followed), StepMeasurement([], step_seconds=2.0))
    assert len(learned.records) == 2, "the first one, as nothing else is known, and the last one"
    assert (len(learned.samples.much), len(learned.samples.little)) == (2, 1)
    assert learned.limited, "one budget is enough"


def test_the_first_step_tells_no_price() -> None:
    learned = Learned(steps=1)
    learned.note(make_step(None), StepMeasurement([], step_seconds=2.0))
    assert not learned.samples.much


def test_the_largest_excess_counts() -> None:
    learned = Learned(steps=3, schedule=SCHEDULE)
    for live_bytes in (910, 950, 905):
        half = HalfMeasurement({}, live_bytes={EVENT: live_bytes})
        learned.note(make_step(SCHEDULE), StepMeasurement([half]))
    assert learned.excess_bytes == 50
