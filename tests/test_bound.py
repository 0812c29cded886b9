from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from math import inf

import milp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import draw_instance, draw_links, draw_step, make_link, make_step, make_value

from fxoffload.planner.bound import Bound, find_bound, find_least_peak, find_least_seconds
from fxoffload.planner.link import Link
from fxoffload.planner.plan import SavedValue
from fxoffload.planner.residences import find_lower_bound
from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Residence, Step, Transfer

# A value of 100 bytes that is away from 5 to 15 s; nothing else matters before and after.
HELD = Residence("held", 100, 5, 14)
STEP = make_step([make_value("v", first_use=8)], fixed=[HELD])


def bound_seconds(step: Step, budget_bytes: int, host_bytes: int = 0, **links: Link) -> float:
    return find_least_seconds(step, links, budget_bytes=budget_bytes, host_bytes=host_bytes)


def bound_peak(step: Step, waiting_seconds: float = 0.0, **links: Link) -> int:
    return find_least_peak(step, links, waiting_seconds=waiting_seconds)


def about(seconds: float) -> object:
    return pytest.approx(seconds, rel=1e-5)


def test_a_piece_of_a_value_is_away_without_waiting():
    # It may be written from 1 to 5 s, and read from 15 to 18 s.
    assert bound_peak(STEP, nvme=make_link(write=4, read=3)) == 100
    assert bound_peak(STEP, nvme=make_link(write=8, read=3)) == 150
    assert bound_peak(STEP, nvme=make_link(write=4, read=12)) == 175
    assert bound_peak(STEP, nvme=make_link(write=8, read=12)) == 175


def test_waits_are_as_long_as_the_links_need_for_what_does_not_fit():
    slow = make_link(write=8, read=12)
    assert bound_seconds(STEP, 200, nvme=slow) == about(20)
    assert bound_seconds(STEP, 175, nvme=slow) == about(20)
    assert bound_seconds(STEP, 150, nvme=slow) == about(20 + (6 - 3))
    assert bound_seconds(STEP, 100, nvme=slow) == about(20 + (8 - 4) + (12 - 3))
    assert bound_seconds(STEP, 99, nvme=slow) == inf
    assert bound_peak(STEP, 3.0, nvme=slow) == 150
    assert bound_peak(STEP, inf, nvme=slow) == 100


def test_what_transfers_take_from_compute_is_part_of_the_step():
    assert bound_seconds(STEP, 100, nvme=make_link(1, 1, compute=2)) == about(20 + 2 * 2)
    assert bound_seconds(STEP, 150, nvme=make_link(1, 1, compute=2)) == about(20 + 2)
    assert bound_peak(STEP, 2.0, nvme=make_link(1, 1, compute=2)) == 150


def test_tiers_move_at_the_same_time_and_the_host_is_full_at_some_point():
    slow = make_link(write=8, read=12)
    assert bound_seconds(STEP, 100, 100, nvme=slow, host=slow) == about(20 + (6 - 3))
    assert bound_seconds(STEP, 100, 25, nvme=slow, host=slow) == about(20 + (6 - 4) + (9 - 3))
    assert bound_seconds(STEP, 100, 0, nvme=slow, host=slow) == about(20 + (8 - 4) + (12 - 3))


def test_what_the_forward_still_reads_is_not_away():
    step = make_step([make_value("v", last_use=5, first_use=8)], fixed=[HELD])
    assert bound_peak(step, inf, nvme=make_link(1, 1)) == 200


def test_what_the_forward_still_reads_does_not_make_up_for_what_is_read_back():
    # In front of 10, "early" is read back while the forward still reads "late".
    values = [
        make_value("early", first_use=0),
        make_value("late", last_use=9, first_use=2),
    ]
    step = make_step(values, fixed=[Residence("held", 100, 5, 9)])
    assert bound_peak(step, nvme=make_link(1, 1)) == 300
    assert bound_peak(step, 1.0, nvme=make_link(1, 1)) == 200


def test_a_wait_in_front_of_a_node_is_none_behind_it():
    held = Residence("held", 100, 10, 10)
    step = make_step([make_value("v", last_use=1, first_use=1, born=0)], fixed=[held])
    # From 1 to 10 s it may be written; it is read between 11 and 11 s.
    assert bound_seconds(step, 100, nvme=make_link(write=14, read=12)) == about(20 + 5 + 12)


def test_a_queue_serves_one_value_after_the_other():
    # 100 bytes are wanted away from 5 s on; only the second value is born early enough for half.
    values = [make_value("a", born=2), make_value("b", born=3, last_use=3)]
    step = make_step(values, fixed=[HELD])
    # From 3 to 5 s, half of a value; 150 of 200 bytes stay with the 100 that are held.
    assert bound_peak(step, nvme=make_link(write=4, read=1)) == 250


def test_values_that_may_not_move_are_kept():
    step = replace(STEP, values=(replace(STEP.values[0], refusal="an output"),))
    assert bound_peak(step, inf, nvme=make_link(1, 1)) == 200
    assert bound_peak(step, nvme=make_link(1, 1)) == 200
    assert bound_seconds(step, 200, nvme=make_link(1, 1)) == 20
    assert bound_seconds(step, 199, nvme=make_link(1, 1)) == inf
    assert bound_peak(replace(step, values=(replace(step.values[0], owned=False),))) == 100


def test_a_value_of_a_larger_storage_counts_by_the_fewer_bytes():
    larger, smaller = (
        replace(STEP, values=(replace(STEP.values[0], gathered=True, base_bytes=nbytes),))
        for nbytes in (300, 40)
    )
    assert bound_peak(larger, inf, nvme=make_link(1, 1)) == 100
    assert bound_peak(smaller, nvme=make_link(write=8, read=6)) == 100


def test_the_best_of_several_partitions_counts():
    link = {"nvme": make_link(write=8, read=12)}
    recomputing = make_step([], backward=[1.0] * 9 + [3.0], fixed=[HELD])
    both = find_bound([STEP, recomputing], link, within_seconds=20.0, budget_bytes=100)
    assert both == Bound(20.0, 175, 100, 100, about(22.0))
    assert find_bound([STEP, recomputing], link, within_seconds=22.0).peak_bytes == 100
    assert find_bound([recomputing], link, within_seconds=20.0).peak_bytes is None
    text = str(both)
    assert "no plan reaches" in text
    assert "in 20.000 s" in text
    assert "less than 22.000 s under" in text


@pytest.mark.parametrize("seed", range(12))
def test_no_optimum_is_below_the_bound(seed: int):
    step, link, budget_bytes = draw_instance(seed)
    optimum = milp.solve(step, link, budget_bytes)
    assert optimum is not None
    seconds = bound_seconds(step, budget_bytes, nvme=link)
    assert seconds <= optimum.step_seconds * (1 + 1e-6)
    found = simulate(step, optimum.transfers, {"nvme": link})
    waiting_seconds = found.step_seconds - step.compute_seconds
    assert bound_peak(step, waiting_seconds + 1e-6, nvme=link) <= found.peak_bytes


@st.composite
def random_windows(draw: st.DrawFn) -> Step:
    """Values that come and go anywhere, as in a step whose forwards and backwards alternate."""
    length = draw(st.integers(4, 14))
    values: list[SavedValue] = []
    for index in range(draw(st.integers(1, 7))):
        born = draw(st.integers(0, length - 2))
        last_use = draw(st.integers(born, length - 2))
        first_use = draw(st.integers(last_use + 1, length - 1))
        freed = draw(st.integers(first_use, length - 1))
        nbytes = draw(st.integers(1, 20))
        base_bytes = draw(st.none() | st.integers(1, 30))
        values.append(
            make_value(
                f"v{index}", nbytes=nbytes, born=born, last_use=last_use, base_bytes=base_bytes,
                first_use=first_use - 1, freed=freed - 1,
            )
        )  # fmt: skip
    seconds = [float(draw(st.integers(0, 4))) for _ in range(length - 1)]
    return make_step(values, forward=[1.0], backward=seconds)


@st.composite
def random_runs(draw: st.DrawFn) -> tuple[Step, Mapping[str, Link], int, Mapping[str, Transfer]]:
    """A step, links, capacity of the host, and transfers of some values wherever they may stand."""

    def draw_int(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    step = draw(random_windows() | st.just(draw_step(draw_int, max_values=8, refusals=True)))
    links = draw_links(draw_int, compute=True)
    links["host"] = draw_links(draw_int)["nvme"]
    transfers: dict[str, Transfer] = {}
    host_bytes = 0
    for value in step.values:
        if value.refusal is None and draw(st.booleans()):
            places = st.integers(value.born + 1, step.first_use(value))
            tier = draw(st.sampled_from(["nvme", "host"]))
            host_bytes += value.nbytes if tier == "host" else 0
            transfers[value.name] = Transfer(tier, draw(st.none() | places), draw(places))
    return step, links, host_bytes, transfers


@settings(max_examples=300, deadline=None)
@given(random_runs(), st.sampled_from([2**62, 10]))
def test_no_simulated_plan_is_below_the_bound(
    run: tuple[Step, Mapping[str, Link], int, Mapping[str, Transfer]], max_inflight_bytes: int
):
    step, links, host_bytes, transfers = run
    found = simulate(step, transfers, links, max_inflight_bytes=max_inflight_bytes)
    seconds = find_least_seconds(step, links, budget_bytes=found.peak_bytes, host_bytes=host_bytes)
    assert seconds <= found.step_seconds * (1 + 1e-6) + 1e-9
    peak = find_least_peak(
        step,
        links,
        waiting_seconds=found.step_seconds - step.compute_seconds + 1e-9,
        host_bytes=host_bytes,
    )
    assert peak <= found.peak_bytes


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31))
def test_more_room_time_or_bandwidth_never_costs(seed: int):
    step, link, budget_bytes = draw_instance(seed)
    lowest, highest = find_lower_bound(step), simulate(step, {}, {}).peak_bytes
    fast = replace(link, write_bytes_per_second=2 * link.write_bytes_per_second)
    assert bound_seconds(step, lowest, nvme=link) < inf
    costs = [
        bound_seconds(step, nbytes, nvme=link)
        for nbytes in (lowest, budget_bytes, (budget_bytes + highest) // 2, highest)
    ]
    tolerance = 1e-5 * step.compute_seconds
    assert all(more >= less - tolerance for more, less in pairwise(costs))
    assert costs[-1] == about(step.compute_seconds)
    assert bound_seconds(step, budget_bytes, nvme=fast) <= costs[1] + tolerance
    peaks = [bound_peak(step, seconds, nvme=link) for seconds in (0.0, 1.0, 5.0, inf)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] == lowest
    assert bound_peak(step, 1.0, nvme=fast) <= peaks[1]
