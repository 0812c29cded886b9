"""What steps have in common, and what counts as a change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fxoffload.runtime.program.comparison import (
    differ,
    differ_in_base,
    differ_in_flows,
    find_medians,
    find_typical_flows,
    keep_sampled,
)
from fxoffload.schedule import (
    LEAST_FLOW_BYTES,
    Flow,
    Half,
    HalfMeasurement,
    Owners,
    Schedule,
    StepMeasurement,
    TierFlow,
)

PROGRAM = (Half("a", 0, True),)
SCHEDULE = Schedule(PROGRAM, (), 1000, 1000, 2000, 1.0, 0.0, 100, 0)
EVENT = "offload", "x"
HALF = HalfMeasurement({EVENT: 1.0}, 0.5, 100, 200, {EVENT: 300})


def make_flow(speed: float, nbytes: int = LEAST_FLOW_BYTES) -> dict[str, TierFlow]:
    flow = Flow(nbytes, nbytes / speed, 1)
    return {"nvme": TierFlow(flow, flow)}


def test_medians_of_times_and_highest_of_bytes() -> None:
    others = [
        HalfMeasurement({EVENT: 2.0}, 0.7, 110, None, {}),
        HalfMeasurement({EVENT: 9.0, ("wait", "y"): 4.0}, 0.1, None, 900, {EVENT: 20}),
    ]
    steps = [StepMeasurement([half]) for half in (HALF, *others)]
    (found,) = find_medians(PROGRAM, steps, steps, 0.0)
    assert found.clocks == {EVENT: 2.0, ("wait", "y"): 4.0}
    assert (found.gap_seconds, found.held_bytes) == (0.5, 105)
    assert (found.gap_bytes, found.peak_bytes) == (900, {EVENT: 300})
    assert found.last_half is None
    halves = (HALF, *(replace(HALF, last_half=n) for n in (3, 1)))
    (found,) = find_medians(PROGRAM, [StepMeasurement([half]) for half in halves], [], 0.0)
    assert (found.gap_bytes, found.peak_bytes) == (None, {}), "of sampled steps only"
    assert found.last_half == 3


def test_seconds_are_those_of_steps_that_were_not_sampled() -> None:
    """If there are any; sampled bytes are those of steps that may be older."""
    slow = HalfMeasurement({EVENT: 9.0}, 4.0, 110, 700, {EVENT: 800})
    sampled = [StepMeasurement([slow], sampled=True)] * 2
    older = StepMeasurement([replace(slow, peak_bytes={EVENT: 900})], sampled=True)
    records = [*sampled, StepMeasurement([HALF])]
    (found,) = find_medians(PROGRAM, records, [older, *sampled], 0.0)
    assert (found.clocks, found.gap_seconds) == (HALF.clocks, HALF.gap_seconds)
    assert (found.gap_bytes, found.peak_bytes) == (700, {EVENT: 900})
    (found,) = find_medians(PROGRAM, sampled, sampled, 0.0)
    assert (found.clocks, found.gap_seconds) == (slow.clocks, slow.gap_seconds)


def test_seconds_are_without_what_transfers_took() -> None:
    """Each step by what it moved itself: the seconds of these are equal without it."""
    much = HalfMeasurement({EVENT: 3.0}, 1.0, 7, 8)
    moved = StepMeasurement([much], {"nvme": TierFlow(Flow(300, 1.0, 1), Flow(100, 1.0, 1))})
    little = replace(much, clocks={EVENT: 1.5}, gap_seconds=0.5)
    kept = StepMeasurement([little])
    for records in ([moved], [moved, kept], [kept]):
        assert find_medians(PROGRAM, records, records, 0.005) == [little]
    assert find_medians(PROGRAM, [moved], [moved], 1.0) == [little], "no more than half of a step"
    assert find_medians(PROGRAM, [moved], [moved], 0.0) == [much]


def test_what_is_shown_is_timed_without_samples() -> None:
    """Whichever of the two steps was the latest; two of one kind leave the latest."""
    timed = StepMeasurement([HALF], step_seconds=1.0)
    seen = replace(HALF, clocks={EVENT: 9.0}, live_bytes={EVENT: 70})
    sampled = StepMeasurement([seen], step_seconds=9.0, sampled=True)
    both = replace(timed, halves=[replace(HALF, live_bytes={EVENT: 70})])
    assert keep_sampled(timed, sampled) == keep_sampled(sampled, timed) == both
    later = replace(timed, step_seconds=2.0)
    assert keep_sampled(both, later) == replace(both, step_seconds=2.0)
    again = replace(sampled, step_seconds=8.0)
    assert keep_sampled(sampled, again) == again


def test_a_schedule_by_sampled_steps_is_made_again() -> None:
    undisturbed = StepMeasurement([HALF])
    assert differ(replace(undisturbed, sampled=True), undisturbed, SCHEDULE)
    assert not differ(undisturbed, replace(undisturbed, sampled=True), SCHEDULE)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"clocks": {EVENT: 1.14}}, False),
        ({"clocks": {EVENT: 1.16}}, True),
        ({"gap_seconds": 0.66}, True),
        ({"held_bytes": 119}, False),
        ({"held_bytes": 121}, True),
        ({"gap_bytes": 221}, True),
        ({"last_half": 1}, True),
        ({"gap_bytes": 0}, False),  # A sampler misses peaks.
    ],
)
def test_what_counts_as_a_change(changes: dict[str, object], expected: bool) -> None:
    """Seconds by a tenth of 1.5, bytes by 2 % of the peak of 1000."""
    assumed = StepMeasurement([HALF], make_flow(1e9), 5000)
    measured = replace(assumed, halves=[replace(HALF, **changes)])
    assert differ(assumed, measured, SCHEDULE) is expected


def test_what_was_on_the_device_counts_where_there_is_a_schedule() -> None:
    assumed = StepMeasurement([HALF], {}, 5000)
    assert not differ_in_base(assumed, 5020, SCHEDULE)
    assert differ_in_base(assumed, 4979, SCHEDULE)
    assert differ(assumed, replace(assumed, base_bytes=5021), SCHEDULE)
    assert not differ_in_base(assumed, 9000, None)
    assert not differ_in_base(None, 9000, SCHEDULE)


def test_prices_differ_by_a_share() -> None:
    first = StepMeasurement([HALF])
    known, near, far = (replace(first, price=price) for price in (1.0, 1.3, 1.4))
    assert differ(first, known, SCHEDULE)
    assert not differ(known, near, SCHEDULE)
    assert differ(known, far, SCHEDULE)
    assert differ(known, replace(first, price=0.0), SCHEDULE)


def test_another_owner_is_a_change() -> None:
    first = StepMeasurement([HALF])
    other = replace(first, owners=Owners(held=frozenset([(0, "x")])))
    assert differ(first, other, SCHEDULE)


def test_speeds_differ_by_a_factor() -> None:
    usual = make_flow(1e9)
    assert not differ_in_flows(usual, make_flow(1.4e9))
    assert differ_in_flows(usual, make_flow(1.6e9))
    assert differ_in_flows(usual, make_flow(0.6e9))
    assert not differ_in_flows(usual, {"nvme": TierFlow()}), "nothing was moved"
    assert not differ_in_flows({}, usual)


def test_the_typical_flow_is_the_middle_one_of_those_that_tell() -> None:
    flows = [make_flow(speed) for speed in (5e9, 1e9, 2e9)]
    flows.append(make_flow(1e12, LEAST_FLOW_BYTES - 1))
    assert find_typical_flows(flows)["nvme"].read.speed == pytest.approx(2e9)
    assert find_typical_flows(flows[:2])["nvme"].write.speed == pytest.approx(1e9)
    assert find_typical_flows([]) == {}
    assert find_typical_flows([make_flow(1e9, 1)])["nvme"] == TierFlow()
