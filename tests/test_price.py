"""What a byte takes from compute, by steps that moved much and steps that moved little."""

from __future__ import annotations

import pytest

from fxoffload.runtime.program.price import KEPT_SAMPLES, Sample, Samples


def make_samples(much: list[float], little: list[float]) -> Samples:
    """Of steps of so many seconds, which moved 1000 and 200 bytes."""
    samples = Samples()
    samples.much.extend(Sample(1000, seconds) for seconds in much)
    samples.little.extend(Sample(200, seconds) for seconds in little)
    return samples


def test_one_step_does_not_decide() -> None:
    assert make_samples([9.0], [1.0, 1.0]).find_price() is None
    assert make_samples([9.0, 9.0], [1.0]).find_price() is None
    assert make_samples([9.0, 9.0], [1.0, 1.0]).find_price() == pytest.approx(0.01)
    # One that something else slowed down.
    assert make_samples([9.0, 9.0, 900.0], [1.0, 1.0, 1.0]).find_price() == pytest.approx(0.01)
    assert make_samples([9.0, 9.0, 9.0], [1.0, 1.0, 99.0]).find_price() == pytest.approx(0.01)


def test_nothing_is_taken_where_steps_are_as_fast() -> None:
    assert make_samples([1.0, 1.0], [1.5, 1.5]).find_price() == 0.0


def test_steps_that_moved_nearly_the_same_do_not_tell() -> None:
    samples = make_samples([9.0, 9.0], [1.0, 1.0])
    samples.little.extend([Sample(900, 1.0)] * KEPT_SAMPLES)
    assert samples.find_price() is None
    assert Samples().find_price() is None
    samples = Samples()
    samples.much.extend([Sample(0, 1.0)] * 2)
    samples.little.extend([Sample(0, 1.0)] * 2)
    assert samples.find_price() is None


def test_what_is_long_ago_is_forgotten() -> None:
    samples = make_samples([9.0] * KEPT_SAMPLES, [1.0] * KEPT_SAMPLES)
    samples.much.extend([Sample(1000, 5.0)] * KEPT_SAMPLES)
    assert samples.find_price() == pytest.approx(0.005)
