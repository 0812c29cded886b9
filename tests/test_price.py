"""What a byte takes from compute, by steps that moved much and steps that moved little."""

from __future__ import annotations

import pytest

from fxoffload.runtime.program.price import KEPT_SAMPLES, LEAST_SAMPLES, Sample, Samples


def make_samples(much: list[float], little: list[float]) -> Samples:
    """Of steps of so many seconds, which moved 1000 and 200 bytes."""
    samples = Samples()
    samples.much.extend(Sample(1000, seconds) for seconds in much)
    samples.little.extend(Sample(200, seconds) for seconds in little)
    return samples


def test_one_step_does_not_decide() -> None:
    few, least = LEAST_SAMPLES - 1, LEAST_SAMPLES
    assert make_samples([9.0] * few, [1.0] * least).find_price() is None
    assert make_samples([9.0] * least, [1.0] * few).find_price() is None
    assert make_samples([9.0] * least, [1.0] * least).find_price() == pytest.approx(0.01)
    # One that something else slowed down.
    slowed = make_samples([*[9.0] * few, 900.0], [1.0] * least)
    assert slowed.find_price() == pytest.approx(0.01)
    slowed = make_samples([9.0] * least, [*[1.0] * few, 99.0])
    assert slowed.find_price() == pytest.approx(0.01)


def test_nothing_is_taken_where_steps_are_as_fast() -> None:
    assert make_samples([1.0] * LEAST_SAMPLES, [1.5] * LEAST_SAMPLES).find_price() == 0.0


def test_steps_that_moved_nearly_the_same_do_not_tell() -> None:
    samples = make_samples([9.0] * LEAST_SAMPLES, [1.0] * LEAST_SAMPLES)
    samples.little.extend([Sample(900, 1.0)] * KEPT_SAMPLES)
    assert samples.find_price() is None
    assert Samples().find_price() is None
    samples = Samples()
    samples.much.extend([Sample(0, 1.0)] * LEAST_SAMPLES)
    samples.little.extend([Sample(0, 1.0)] * LEAST_SAMPLES)
    assert samples.find_price() is None


def test_what_is_long_ago_is_forgotten() -> None:
    samples = make_samples([9.0] * KEPT_SAMPLES, [1.0] * KEPT_SAMPLES)
    samples.much.extend([Sample(1000, 5.0)] * KEPT_SAMPLES)
    assert samples.find_price() == pytest.approx(0.005)
