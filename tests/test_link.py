"""Links: seconds of transfers."""

from __future__ import annotations

from math import inf

import pytest

from fxoffload.planner.link import Link, find_speed
from fxoffload.schedule import LEAST_FLOW_BYTES, Flow, TierFlow


def test_seconds_of_a_transfer() -> None:
    """Each way has its latency, which occupies nothing; what compute loses is counted elsewhere."""
    link = Link(100.0, 50.0, latency_seconds=0.25, compute_seconds_per_byte=1.0)
    assert link.write_seconds(200) == 2.0
    assert link.read_seconds(200) == 4.0
    assert link.round_trip_seconds(200) == 6.5
    assert link.round_trip_seconds(0) == 0.5


def test_what_was_seen_counts() -> None:
    """But for a direction that moved too little, and never beyond what the way lets through."""
    link = Link(100.0, 50.0, 0.25, 1.0)
    fast = Flow(2**30, 1.0, 1)
    seen = link.correct(TierFlow(fast, Flow(LEAST_FLOW_BYTES - 1, 1e-3, 1)))
    assert seen.write_bytes_per_second == 2**30 / 0.75
    assert (seen.read_bytes_per_second, seen.compute_seconds_per_byte) == (50.0, 1.0)
    narrow = Link(100.0, 50.0, 0.25, 1.0, 2e8, inf).correct(TierFlow(fast, fast))
    assert narrow.write_bytes_per_second == 2e8
    assert narrow.read_bytes_per_second == 2**30 / 0.75
    assert link.correct(TierFlow()) == link
    assert link.correct(TierFlow(), 2.0).compute_seconds_per_byte == 2.0
    assert link.correct(TierFlow(), 0.0).compute_seconds_per_byte == 0.0
    other = Link(100.0, 50.0, 0.25)  # As a GPU's, which takes nothing.
    assert other.correct(TierFlow(), 2.0) == other


@pytest.mark.parametrize(("periods", "expected"), [(0, 1.0), (1, 0.9), (4, 0.6), (9, 0.5)])
def test_a_period_has_one_latency(periods: int, expected: float) -> None:
    """Not more than half of the time is taken for that."""
    assert find_speed(Flow(2**30, 1.0, periods), 0.1) == pytest.approx(2**30 / expected)
