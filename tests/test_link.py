"""Links: seconds of transfers."""

from __future__ import annotations

from fxoffload.planner.link import Link


def test_seconds_of_a_transfer() -> None:
    """Each way has its latency, which occupies nothing; what compute loses is counted elsewhere."""
    link = Link(100.0, 50.0, latency_seconds=0.25, compute_seconds_per_byte=1.0)
    assert link.write_seconds(200) == 2.0
    assert link.read_seconds(200) == 4.0
    assert link.round_trip_seconds(200) == 6.5
    assert link.round_trip_seconds(0) == 0.5
