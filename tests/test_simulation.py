"""simulate: small steps, compared with times and bytes that are computed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import make_link, make_step, make_value, random_links, random_steps, random_transfers

from fxoffload.planner.link import Link
from fxoffload.planner.plan import SavedValue
from fxoffload.planner.simulation import Simulation, find_holders, simulate
from fxoffload.planner.step import Residence, Step, Transfer


def run(step: Step, link: Link, *places: tuple[int | None, int], **options: Any) -> Simulation:
    """Move the values of `step` in turn, released and prefetched in front of these positions."""
    transfers = {
        value.name: Transfer("nvme", *place)
        for value, place in zip(step.values, places, strict=False)
    }
    return simulate(step, transfers, {"nvme": link}, **options)


# One value in ten seconds of forward and ten of backward; see make_value.
ONE = make_step([make_value("a")])


# --- time ---------------------------------------------------------------------------------------


def test_nothing_moved_takes_what_compute_takes() -> None:
    result = simulate(ONE, {}, {})
    assert (result.step_seconds, result.exposed_seconds) == (20.0, 0.0)
    assert (result.written_bytes, result.read_bytes, result.forwarded_bytes) == (0, 0, 0)


def test_hidden_transfers_cost_nothing() -> None:
    result = run(ONE, make_link(3.0, 4.0), (5, 14))
    assert (result.step_seconds, result.exposed_seconds) == (20.0, 0.0)
    assert (result.written_bytes, result.read_bytes, result.forwarded_bytes) == (100, 100, 0)


def test_late_write_holds_up_the_release() -> None:
    """Asked for at 1, where f0 is done, and done at 7.5; the release stands at 5."""
    result = run(ONE, make_link(6.5, 1.0), (5, 14))
    assert (result.step_seconds, result.exposed_seconds) == (22.5, 2.5)


def test_late_read_holds_up_its_reader() -> None:
    """Asked for at 16, done at 20.5; the reader, b8, would start at 18."""
    result = run(ONE, make_link(1.0, 4.5), (5, 16))
    assert (result.step_seconds, result.exposed_seconds) == (22.5, 2.5)


def test_latency_counts_once_for_each_transfer() -> None:
    """Done at 1 + 6 + 0.5 and 16 + 4 + 0.5."""
    result = run(ONE, make_link(6.0, 4.0, latency=0.5), (5, 13))
    assert result.exposed_seconds == 2.5
    result = run(ONE, make_link(1.0, 4.0, latency=0.5), (5, 16))
    assert result.exposed_seconds == 2.5


def test_writes_queue_and_overlap_their_latencies() -> None:
    """Asked for at 1 and 2, written until 5 and 9, each done half a second later."""
    step = make_step([make_value("a"), make_value("b", born=1)])
    link = make_link(4.0, 0.1, latency=0.5)
    assert run(step, link, (5, 17), (10, 17)).exposed_seconds == 0.5
    assert run(step, link, (10, 17), (5, 17)).exposed_seconds == 4.5


def test_reads_queue_in_the_order_of_prefetches() -> None:
    """Both are asked for at 16: the one used first comes first, and the other behind it."""
    step = make_step([make_value("a", first_use=9), make_value("b", born=1)])
    result = run(step, make_link(0.1, 2.0), (9, 16), (9, 16))
    # b at 18, when b8 wants it; a at 20, when b9 would have started at 19.
    assert result.exposed_seconds == 1.0
    late = run(step, make_link(0.1, 2.0), (9, 16), (9, 17))
    assert late.exposed_seconds == 2.0, "b is asked for second and comes at 20, not at 18"


def test_value_whose_write_is_not_done_is_forwarded() -> None:
    """Written until 17: a prefetch at 16 finds it in memory, one at 17 has to read it."""
    link = make_link(16.0, 5.0)
    result = run(ONE, link, (None, 16))
    assert (result.forwarded_bytes, result.read_bytes, result.written_bytes) == (100, 0, 100)
    assert result.exposed_seconds == 0.0
    result = run(ONE, link, (None, 17))
    assert (result.forwarded_bytes, result.read_bytes) == (0, 100)
    assert result.exposed_seconds == 4.0


def test_forwarded_value_leaves_the_read_link_to_others() -> None:
    step = make_step([make_value("a"), make_value("b", born=1, first_use=9)])
    result = run(step, make_link(14.0, 2.0), (None, 15), (None, 17))
    # a is in memory at 15, where its write is done; b's write ends at 29, so it is forwarded.
    assert result.read_bytes == 100
    result = run(step, make_link(14.0, 2.0), (None, 14), (None, 17))
    assert result.read_bytes == 0


def test_cap_of_bytes_in_flight_holds_up_the_next_offload() -> None:
    """Three writes of three seconds each, asked for at 1, 2 and 3; two of them may be under way."""
    step = make_step([make_value(name, born=born) for born, name in enumerate("abc")])
    places = [(9, 17)] * 3
    assert run(step, make_link(3.0, 0.1), *places).exposed_seconds == 1.0  # c is done at 10
    capped = run(step, make_link(3.0, 0.1), *places, max_inflight_bytes=200)
    assert capped.exposed_seconds == 1.0, "c waits from 3 to 4, then is done at 10, f9 starts at 10"
    single = run(step, make_link(3.0, 0.1), *places, max_inflight_bytes=199)
    # b waits from 2 to 4, c from 5 to 7; by then f3 starts at 7, and f9 at 13.
    assert (single.step_seconds, single.exposed_seconds) == (24.0, 4.0)


def test_value_beyond_the_cap_goes_alone() -> None:
    step = make_step([make_value(name, born=born) for born, name in enumerate("ab")])
    result = run(step, make_link(3.0, 0.1), (9, 17), (9, 17), max_inflight_bytes=1)
    assert result.exposed_seconds == 2.0


def test_cap_waits_for_the_first_write_to_end() -> None:
    """The slow tier was asked first; the room comes from the fast one."""
    step = make_step([make_value(name, born=born) for born, name in enumerate("abc")])
    links = {"nvme": make_link(9.0, 0.1), "host": make_link(1.5, 0.1)}
    transfers = {
        "a": Transfer("nvme", 10, 17),
        "b": Transfer("host", 10, 17),
        "c": Transfer("host", 10, 17),
    }
    result = simulate(step, transfers, links, max_inflight_bytes=200)
    assert result.exposed_seconds == 0.5


def test_tiers_do_not_queue_behind_each_other() -> None:
    step = make_step([make_value("a"), make_value("b", born=1)])
    links = {"nvme": make_link(4.0, 0.1), "host": make_link(3.0, 0.1)}
    transfers = {"a": Transfer("nvme", 5, 17), "b": Transfer("host", 5, 17)}
    assert simulate(step, transfers, links).exposed_seconds == 0.0
    same = {name: replace(transfer, tier="nvme") for name, transfer in transfers.items()}
    assert simulate(step, same, links).exposed_seconds == 4.0


def test_transfers_take_from_compute_what_the_link_says() -> None:
    """Two seconds for each 100 bytes each way: more time, but nobody waits."""
    result = run(ONE, make_link(1.0, 1.0, compute=2.0), (9, 12))
    assert (result.step_seconds, result.exposed_seconds) == (24.0, 0.0)


def test_forwarded_value_takes_nothing_from_compute() -> None:
    result = run(ONE, make_link(30.0, 1.0, compute=2.0), (None, 12))
    assert (result.step_seconds, result.forwarded_bytes) == (22.0, 100)


# --- memory -------------------------------------------------------------------------------------


def test_moved_value_is_away_from_release_to_prefetch() -> None:
    result = run(ONE, make_link(0.1, 0.1), (5, 14))
    assert result.live_bytes == (100,) * 5 + (0,) * 9 + (100,) * 6
    assert (result.peak_bytes, result.peak_position) == (100, 0)


def test_release_that_does_not_block_ends_with_its_write() -> None:
    """Written until 12.5: in memory while b0, b1 and b2 run, whose turn comes at 10, 11 and 12."""
    result = run(ONE, make_link(11.5, 0.1), (None, 15))
    assert result.live_bytes == (100,) * 13 + (0,) * 2 + (100,) * 5
    assert result.exposed_seconds == 0.0
    blocking = run(ONE, make_link(11.5, 0.1), (9, 15))
    assert blocking.live_bytes == (100,) * 9 + (0,) * 6 + (100,) * 5
    assert blocking.exposed_seconds == 3.5


def test_forwarded_value_never_leaves() -> None:
    result = run(ONE, make_link(30.0, 1.0), (None, 17))
    assert result.live_bytes == (100,) * 20


def test_value_being_written_counts_while_a_node_waits() -> None:
    """b8 waits from 18 for what was asked for at 17, until 20; a is written until 19."""
    step = make_step([make_value("a", first_use=9), make_value("b", born=1, nbytes=40)])
    links = {"nvme": make_link(18.0, 0.1), "host": make_link(1.0, 7.5)}
    transfers = {"a": Transfer("nvme", None, 19), "b": Transfer("host", 5, 17)}
    result = simulate(step, transfers, links)
    assert result.exposed_seconds == pytest.approx(2.0 + 0.1)  # b8 for b, b9 for a
    assert result.live_bytes[17:20] == (140, 140, 140)


def test_gathered_value_that_stays_keeps_its_storage() -> None:
    """It counts with its share of the storage as long as it is kept, with its own bytes moved."""
    step = make_step([make_value("a", nbytes=10, base_bytes=50, gathered=True)])
    assert simulate(step, {}, {}).peak_bytes == 50
    assert run(step, make_link(0.1, 0.1), (5, 14)).peak_bytes == 10


def test_value_of_the_caller_is_not_ours_to_count() -> None:
    """A parameter is not; an activation of another graph lives on because of this one."""
    parameter = make_value("a", owned=False, refusal="parameter")
    assert simulate(make_step([parameter]), {}, {}).peak_bytes == 0
    assert simulate(make_step([make_value("a", owned=False)]), {}, {}).peak_bytes == 100


def test_empty_step() -> None:
    result = simulate(make_step([], forward=0, backward=0), {}, {})
    assert (result.step_seconds, result.peak_bytes) == (0.0, 0)


# --- bounds and holders -------------------------------------------------------------------------


def test_holders_at_the_peak_are_largest_first() -> None:
    step = make_step(
        [make_value("a"), make_value("b", nbytes=30)], fixed=[Residence("t", 50, 1, 1)]
    )
    result = run(step, make_link(0.1, 0.1), (5, 14))
    names = [holder.name for holder in find_holders(step, result, {"a": Transfer("nvme", 5, 14)})]
    assert result.peak_position == 1
    assert names == ["a", "t", "b"]


# --- properties ---------------------------------------------------------------------------------


def recount_live_bytes(
    step: Step, transfers: Mapping[str, Transfer], link: Link, position: int
) -> int:
    """The memory curve at one position, asking every value, from times of a walk of its own."""
    ends, arrivals = replay_writes(step, transfers, link)
    live = sum(r.nbytes for r in step.fixed if r.first <= position <= r.last)
    for value in step.values:
        transfer = transfers.get(value.name)
        if not value.born <= position <= step.freed(value):
            continue
        if transfer is None:
            live += value.nbytes if value.owned or value.refusal is None else 0
        else:
            is_held = position <= value.last_use
            if transfer.release is None:
                is_held |= ends[value.name] > arrivals[position]
            else:
                is_held |= position < transfer.release
            live += value.nbytes * (is_held or position >= transfer.prefetch)
    return live


def replay_writes(
    step: Step, transfers: Mapping[str, Transfer], link: Link
) -> tuple[dict[str, float], list[float]]:
    """When each write ends, and when each position is reached, reads included."""
    ends: dict[str, float] = {}
    reads: dict[str, float] = {}
    arrivals: list[float] = []
    clock = write_free = read_free = 0.0
    by_use: list[SavedValue] = sorted(step.values, key=lambda value: value.first_use)
    for position, seconds in enumerate(step.seconds):
        arrivals.append(clock)
        for name, transfer in transfers.items():
            if transfer.release == position:
                clock = max(clock, ends[name])
        for value in by_use:
            if value.name in transfers and transfers[value.name].prefetch == position:
                if ends[value.name] > clock:
                    reads[value.name] = clock
                    continue
                clock += link.compute_seconds_per_byte * value.nbytes
                read_free = max(read_free, clock) + value.nbytes / link.read_bytes_per_second
                reads[value.name] = read_free + link.latency_seconds
        for value in step.values:
            if value.name in transfers and step.first_use(value) == position:
                clock = max(clock, reads[value.name])
        clock += seconds
        for value in step.values:
            if value.name in transfers and value.born == position:
                clock += link.compute_seconds_per_byte * value.nbytes
                write_free = max(write_free, clock) + value.nbytes / link.write_bytes_per_second
                ends[value.name] = write_free + link.latency_seconds
    return ends, arrivals


@settings(deadline=None, max_examples=200)
@given(st.data(), random_steps(), random_links())
def test_memory_curve_is_that_of_a_recount(
    data: st.DataObject, step: Step, links: Mapping[str, Link]
) -> None:
    transfers = data.draw(random_transfers(step))
    result = simulate(step, transfers, links)
    expected = [
        recount_live_bytes(step, transfers, links["nvme"], position)
        for position in range(len(step.seconds))
    ]
    assert list(result.live_bytes) == expected
    assert result.written_bytes == result.read_bytes + result.forwarded_bytes


@settings(deadline=None, max_examples=100)
@given(st.data(), random_steps(), random_links())
def test_time_is_compute_and_waiting_and_what_transfers_take(
    data: st.DataObject, step: Step, links: Mapping[str, Link]
) -> None:
    transfers = data.draw(random_transfers(step))
    result = simulate(step, transfers, links)
    share = links["nvme"].compute_seconds_per_byte
    taken = share * (result.written_bytes + result.read_bytes)
    total = step.compute_seconds + result.exposed_seconds + taken
    assert result.step_seconds == pytest.approx(total)
    assert result == simulate(step, dict(reversed(transfers.items())), links)
