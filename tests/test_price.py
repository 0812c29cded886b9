"""What a byte takes from compute, by steps that moved much and steps that moved little."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fxoffload.runtime.program.price import KEPT_SLOPES, LEAST_SLOPES, Sample, Samples

LEAST_STEPS = LEAST_SLOPES + 2
PROBED = 0.02


def make_samples(seconds: Sequence[float], much: int = 1000, little: int = 200) -> Samples:
    """Of steps of so many seconds, which moved `much` and `little` bytes in turns."""
    samples = Samples()
    for step, each in enumerate(seconds):
        samples.add(Sample(step, little if step % 2 else much, each))
    return samples


def take_turns(count: int, much: float = 9.0, little: float = 1.0) -> list[float]:
    """Seconds of `count` steps."""
    return [little if step % 2 else much for step in range(count)]


def test_few_steps_do_not_decide() -> None:
    assert Samples().find_price(PROBED) is None
    assert make_samples(take_turns(LEAST_STEPS - 1)).find_price(PROBED) is None
    assert make_samples(take_turns(LEAST_STEPS)).find_price(PROBED) == pytest.approx(0.01)


@pytest.mark.parametrize("slowed", range(LEAST_STEPS + 2))
def test_one_step_does_not_decide(slowed: int) -> None:
    """One that something else slowed down."""
    seconds = take_turns(LEAST_STEPS + 2)
    seconds[slowed] = 900.0
    assert make_samples(seconds).find_price(PROBED) == pytest.approx(0.01)


def test_a_machine_that_becomes_slower_changes_nothing() -> None:
    seconds = [base + 0.5 * step for step, base in enumerate(take_turns(LEAST_STEPS))]
    assert make_samples(seconds).find_price(PROBED) == pytest.approx(0.01)


def test_nothing_is_taken_where_steps_are_as_fast() -> None:
    assert make_samples(take_turns(LEAST_STEPS, 1.0, 1.5)).find_price(PROBED) == 0.0


def test_the_probe_counts_as_far_as_the_steps_do_not_contradict_it() -> None:
    """More comparisons of the same noise leave less of it."""
    noise = (0.0, 0.0, 6.0, 0.0, 0.0, 6.0)
    widths: list[float] = []
    for count in (LEAST_STEPS, KEPT_SLOPES + 2):
        seconds = [each + noise[step % 6] for step, each in enumerate(take_turns(count))]
        samples = make_samples(seconds)
        low, high = (samples.find_price(probed) for probed in (0.0, 1.0))
        assert low is not None
        assert high is not None
        assert 0.0 <= low < 0.01 < high < 0.05
        assert samples.find_price(0.011) == 0.011
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_steps_that_moved_nearly_the_same_do_not_tell() -> None:
    for much, little in ((1000, 900), (1000, 1000), (0, 0)):
        assert make_samples(take_turns(LEAST_STEPS), much, little).find_price(PROBED) is None


def test_only_steps_that_follow_each_other_are_compared() -> None:
    samples = Samples()
    for step, seconds in enumerate(take_turns(3 * LEAST_STEPS)):
        samples.add(Sample(2 * step, 200 if step % 2 else 1000, seconds))
    assert samples.find_price(PROBED) is None


def test_a_step_between_one_that_moved_more_and_one_that_moved_less_is_not_compared() -> None:
    samples = Samples()
    for step in range(3 * LEAST_STEPS):
        samples.add(Sample(step, (1000, 500, 100, 500)[step % 4], 1.0))
    assert len(samples.slopes) == (3 * LEAST_STEPS - 2) // 2


def test_what_is_long_ago_is_forgotten() -> None:
    seconds = take_turns(LEAST_STEPS) + take_turns(KEPT_SLOPES + 2, 5.0)
    assert make_samples(seconds).find_price(PROBED) == pytest.approx(0.005)
