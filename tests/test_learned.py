"""What is known of one program: when its next step is measured, and what it is assumed to take."""

from __future__ import annotations

import pytest

from fxoffload.runtime.program.learned import FIRST_STEPS, MEASURED_EACH, Learned
from fxoffload.schedule import HalfMeasurement, StepMeasurement


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
    learned.forget_guess()
    assert (learned.assumed, len(learned.records)) == (None, 0)
    learned.assumed = StepMeasurement([])
    learned.forget_guess()
    assert learned.assumed is not None, "it is no guess"
