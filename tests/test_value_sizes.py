"""Sizes of values that may change, and what a step of other sizes is assumed to take."""

from __future__ import annotations

from fxoffload.runtime.program.value_sizes import is_smaller, merge_sizes, scale_measurement
from fxoffload.schedule import HalfMeasurement, StepMeasurement


def test_the_largest_of_each_value() -> None:
    assert merge_sizes({"a": {"x": 1, "y": 5}}, {"a": {"x": 3}, "b": {"z": 2}}) == {
        "a": {"x": 3, "y": 5},
        "b": {"z": 2},
    }
    assert merge_sizes() == {}


def test_smaller_steps_tell_nothing() -> None:
    known = {"a": {"x": 60, "y": 40}, "b": {"z": 1000}}
    assert is_smaller({"a": {"x": 50, "y": 39}}, known)
    assert not is_smaller({"a": {"x": 51, "y": 40}}, known)
    assert not is_smaller({"a": {"x": 60}}, known), "only what the step saved is compared"
    assert not is_smaller({}, {}), "sizes that are fixed"


def test_a_larger_step_takes_more_of_all() -> None:
    event = "offload", "x"
    half = HalfMeasurement({event: 2.0}, 1.0, 10, None, {event: 30}, {event: 70})
    freed = HalfMeasurement({}, 0.0, -10, 20)
    measured = StepMeasurement([half, freed], excess_bytes=7, sizes={"a": {"x": 100}})
    sizes = {"a": {"x": 250}}
    found = scale_measurement(measured, sizes)
    assert found.sizes == sizes
    assert found.excess_bytes == 0
    assert found.halves == [
        HalfMeasurement({event: 5.0}, 2.5, 25, None, {event: 75}),
        HalfMeasurement({}, 0.0, 0, 50),
    ]
    smaller = scale_measurement(measured, {"a": {"x": 50}}).halves[0]
    assert (smaller.held_bytes, smaller.clocks) == (10, {event: 1.0}), "bytes do not shrink"
