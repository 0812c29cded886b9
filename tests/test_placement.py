"""place_transfers: places of releases and prefetches by time, and by memory under a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from steps import make_link, make_step, make_value, random_links, random_steps

from fxoffload.planner.link import Link
from fxoffload.planner.placement import place_transfers
from fxoffload.planner.residences import find_lower_bound, find_working_sets
from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Phase, Residence, Step, Transfer

INSTANT = Link(inf, inf, 0.0)


AMPLE = 2**40


def place(
    step: Step, link: Link, budget_bytes: int | None = AMPLE, **options: Any
) -> dict[str, tuple[int | None, int]]:
    """Positions of release and prefetch of everything that may move."""
    tiers: dict[str, Any] = {v.name: "nvme" for v in step.values if v.refusal is None}
    transfers = place_transfers(step, tiers, {"nvme": link}, budget_bytes=budget_bytes, **options)
    return {name: (transfer.release, transfer.prefetch) for name, transfer in transfers.items()}


# --- by time ------------------------------------------------------------------------------------


def test_release_stands_where_its_write_is_done() -> None:
    """Asked for at 1, done at 4.5: f5 is the first node that starts later."""
    step = make_step([make_value("a")])
    assert place(step, make_link(3.5, 0.1))["a"][0] == 5
    assert place(step, make_link(3.0, 0.1))["a"][0] == 4
    assert place(step, make_link(3.0, 0.1), budget_bytes=None)["a"][0] is None, "nobody waits"


def test_prefetch_stands_as_late_as_its_read_allows() -> None:
    """Read by b8, whose turn comes at 18."""
    step = make_step([make_value("a")])
    assert place(step, make_link(0.1, 3.5))["a"][1] == 14
    assert place(step, make_link(0.1, 3.0))["a"][1] == 15


def test_release_never_precedes_the_last_forward_reader() -> None:
    step = make_step([make_value("a", last_use=6)])
    assert place(step, INSTANT) == {"a": (7, 18)}


def test_write_that_outlasts_the_forward_does_not_block() -> None:
    step = make_step([make_value("a")])
    assert place(step, make_link(9.5, 0.1))["a"][0] is None


def test_read_that_outlasts_the_backward_starts_first_thing() -> None:
    """No op may stand between the placeholders."""
    step = make_step([make_value("a")], inputs=(0, 3))
    assert place(step, make_link(0.1, 100.0))["a"][1] == 13


def test_release_stands_behind_the_placeholders() -> None:
    step = make_step([make_value("a", last_use=0, owned=False)], inputs=(3, 0))
    assert place(step, INSTANT)["a"][0] == 3


def test_transfers_queue_and_overlap_their_latencies() -> None:
    """Writes asked for at 1 and 2 take until 4 and 7, reads are wanted at 18 and 16."""
    step = make_step([make_value("a"), make_value("b", born=1, first_use=6)])
    assert place(step, make_link(3.0, 3.0)) == {"a": (4, 15), "b": (7, 12)}
    assert place(step, make_link(3.0, 3.0, latency=1.0)) == {"a": (5, 14), "b": (8, 11)}


def test_tiers_do_not_queue_behind_each_other() -> None:
    step = make_step([make_value("a"), make_value("b", born=1, first_use=6)])
    links = {"nvme": make_link(3.0, 3.0), "host": make_link(3.0, 3.0)}
    transfers = place_transfers(step, {"a": "nvme", "b": "host"}, links, budget_bytes=AMPLE)
    assert transfers == {"a": Transfer("nvme", 4, 15), "b": Transfer("host", 5, 13)}


# --- by room ------------------------------------------------------------------------------------


def test_release_blocks_where_the_room_is_needed() -> None:
    """Without a budget it would stand at 5; a temporary at 3 leaves no room for it."""
    step = make_step([make_value("a")], fixed=[Residence("t", 60, 3, 3)])
    assert place(step, make_link(3.5, 0.1), budget_bytes=159)["a"][0] == 3
    assert place(step, make_link(3.5, 0.1), budget_bytes=160)["a"][0] == 5


def test_only_the_first_writes_are_waited_for() -> None:
    """Room for one of the two, and the write that ends first is the cheaper to wait for."""
    values = [make_value("a"), make_value("b", born=1, last_use=2)]
    step = make_step(values, fixed=[Residence("t", 60, 4, 4)])
    releases = {n: p[0] for n, p in place(step, make_link(4.0, 0.1), budget_bytes=200).items()}
    assert releases == {"a": 4, "b": 8}, "b at 9; a's release made f4 start at 5"


def test_forward_waits_for_writes_where_little_may_be_held_at_its_end() -> None:
    step = make_step([make_value("a", born=8, last_use=8)])
    slow = make_link(write=5, read=1)
    assert place(step, slow)["a"][0] is None
    assert place(step, slow, held_bytes=99)["a"][0] == 9
    assert place(step, slow, held_bytes=100)["a"][0] is None


def test_prefetch_comes_late_where_the_room_is_needed() -> None:
    step = make_step([make_value("a")], fixed=[Residence("t", 60, 15, 15)])
    assert place(step, make_link(0.1, 3.5), budget_bytes=159)["a"][1] == 16
    assert place(step, make_link(0.1, 3.5), budget_bytes=160)["a"][1] == 14


def test_forward_waits_for_a_write_where_the_backward_needs_the_room() -> None:
    """Once the backward runs, nothing can wait for it: the release blocks at the end."""
    step = make_step([make_value("a")], fixed=[Residence("t", 60, 11, 11)])
    link = make_link(12.0, 0.1)
    assert place(step, link, budget_bytes=160)["a"][0] is None
    assert place(step, link, budget_bytes=159)["a"][0] == 9
    late = replace(step, fixed=(Residence("t", 60, 13, 13),))
    assert place(late, link, budget_bytes=159)["a"][0] is None, "written by then, at 13"


def test_a_later_forward_waits_for_a_write_of_an_earlier_one() -> None:
    """Asked for at 1 and done at 7; the second forward, from 4 to 8, has no room for it at 5."""
    step = make_step(
        [make_value("a", last_use=0, first_use=7, freed=7)],
        forward=2, backward=8, fixed=[Residence("t", 60, 5, 5)],
    )  # fmt: skip
    step = replace(step, phases=(Phase(0, 2, 4), Phase(4, 8, 10)))
    assert place(step, make_link(6.0, 0.1), budget_bytes=159)["a"][0] == 5
    assert place(step, make_link(6.0, 0.1), budget_bytes=160)["a"][0] is None


def test_forward_waits_where_that_is_cheaper_than_a_late_prefetch() -> None:
    """The write of b would keep the read of a from starting before 13; that takes 10 seconds."""
    values = [
        make_value("a", first_use=4, freed=5),
        make_value("b", born=8, last_use=8, first_use=9),
    ]
    step = make_step(values)
    places = place(step, Link(100 / 3.5, 10.0, 0.0), budget_bytes=100)
    assert places["b"][0] == 9
    assert places["a"][1] == 10
    transfers = {name: Transfer("nvme", *positions) for name, positions in places.items()}
    result = simulate(step, transfers, {"nvme": Link(100 / 3.5, 10.0, 0.0)})
    assert result.peak_bytes == 100


def test_values_of_one_reader_are_read_in_the_order_that_waits_least() -> None:
    """What does not fit in front of b8 comes last, and the other is read ahead."""
    values = [make_value("a", nbytes=50), make_value("b", born=1, nbytes=80)]
    step = make_step(values, fixed=[Residence("t", 50, 12, 17)])
    places = place(step, make_link(0.1, 3.0), budget_bytes=130)
    assert (places["a"][1], places["b"][1]) == (18, 15), "either fits: the small one makes it wait"
    step = replace(step, fixed=(Residence("t", 51, 12, 17),))
    places = place(step, make_link(0.1, 3.0), budget_bytes=131)
    assert (places["a"][1], places["b"][1]) == (18, 15)
    places = place(step, make_link(0.1, 3.0), budget_bytes=130)
    assert (places["a"][1], places["b"][1]) == (16, 18), "only the small one fits"


def test_reads_ahead_are_bounded() -> None:
    """Without a bound, both reads would be under way at 16."""
    values = [make_value("a", first_use=9), make_value("b", born=1)]
    step = make_step(values)
    assert place(step, make_link(0.1, 2.0)) == {"a": (2, 17), "b": (3, 15)}
    bounded = place(step, make_link(0.1, 2.0), max_inflight_bytes=199)
    assert (bounded["a"][1], bounded["b"][1]) == (18, 16)


# --- properties ---------------------------------------------------------------------------------


def choose_tiers(data: st.DataObject, step: Step) -> dict[str, Any]:
    names = [value.name for value in step.values if value.refusal is None]
    return {name: "nvme" for name in names if data.draw(st.booleans())}


@settings(deadline=None, max_examples=300)
@given(st.data(), random_steps(), random_links())
def test_budget_is_kept_wherever_the_values_in_use_leave_room(
    data: st.DataObject, step: Step, links: Mapping[str, Link]
) -> None:
    """With the links that the places were made for."""
    tiers = choose_tiers(data, step)
    lowest = max(find_working_sets(step, set(tiers)))
    budget_bytes = lowest + data.draw(st.integers(0, 40))
    transfers = place_transfers(step, tiers, links, budget_bytes=budget_bytes)
    assert simulate(step, transfers, links).peak_bytes <= budget_bytes


@settings(deadline=None, max_examples=300)
@given(st.data(), random_steps(), random_links(), st.integers(1, 100))
def test_every_transfer_is_legal(
    data: st.DataObject,
    step: Step,
    links: Mapping[str, Link],
    max_inflight_bytes: int,
) -> None:
    tiers = choose_tiers(data, step)
    budget_bytes = data.draw(st.one_of(st.none(), st.integers(0, 150)))
    options: dict[str, Any] = {"budget_bytes": budget_bytes}
    options["max_inflight_bytes"] = max_inflight_bytes
    transfers = place_transfers(step, tiers, links, **options)
    assert list(transfers) == [value.name for value in step.values if value.name in tiers]
    start = step.forward_length + step.backward_inputs
    for value in step.values:
        if value.name in transfers:
            transfer = transfers[value.name]
            if transfer.release is not None:
                assert max(value.last_use + 1, step.forward_inputs) <= transfer.release
                assert transfer.release < step.forward_length
                assert budget_bytes is not None
            assert start <= transfer.prefetch <= step.first_use(value)
    assert transfers == place_transfers(step, tiers, links, **options)


@settings(deadline=None, max_examples=200)
@given(random_steps())
def test_instant_transfers_reach_the_lower_bound(step: Step) -> None:
    tiers: dict[str, Any] = {v.name: "nvme" for v in step.values if v.refusal is None}
    lowest = find_lower_bound(step)
    transfers = place_transfers(step, tiers, {"nvme": INSTANT}, budget_bytes=lowest)
    # Nothing can be released among the inputs of the graph.
    inputs = sum(v.nbytes for v in step.values if v.last_use + 1 < step.forward_inputs)
    result = simulate(step, transfers, {"nvme": INSTANT})
    assert lowest <= result.peak_bytes <= lowest + inputs
    assert result.exposed_seconds == 0.0


@settings(deadline=None, max_examples=200)
@given(random_steps(), random_links())
def test_without_budget_a_hidden_transfer_is_not_waited_for(
    step: Step, links: Mapping[str, Link]
) -> None:
    """Releases without a budget never block: only reads that begin too late can be waited for."""
    link = Link(**{**_fields(links["nvme"]), "read_bytes_per_second": inf, "latency_seconds": 0.0})
    tiers: dict[str, Any] = {v.name: "nvme" for v in step.values if v.refusal is None}
    transfers = place_transfers(step, tiers, {"nvme": link})
    assert simulate(step, transfers, {"nvme": link}).exposed_seconds < 1e-9


def _fields(link: Link) -> dict[str, float]:
    return {name: getattr(link, name) for name in Link.__slots__}


# --- where an op stands -------------------------------------------------------------------------


@given(step=random_steps(), links=random_links(), stops=st.sets(st.integers(0, 30)))
@settings(max_examples=200, deadline=None)
def test_rounded_to_stops_no_more_memory_is_taken(
    step: Step, links: dict[str, Link], stops: set[int]
) -> None:
    """Releases stand earlier, behind the last reader; prefetches later, before the first one."""
    link = links["nvme"]
    free = place(step, link)
    rounded = place(replace(step, stops=tuple(sorted(stops))), link)
    for value in step.values:
        if value.name not in free:
            continue
        (release, prefetch), (earlier, later) = free[value.name], rounded[value.name]
        if release is None:
            assert earlier is None
        else:
            assert earlier is not None
            assert value.last_use < earlier <= release
            assert earlier in stops or earlier == value.last_use + 1
            assert not any(earlier < stop <= release for stop in stops)
        assert prefetch <= later <= step.first_use(value)
        assert later in stops or later == step.first_use(value)
        assert not any(prefetch <= stop < later for stop in stops)
