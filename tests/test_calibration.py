"""Calibration: factors of nodes, from the clocks of the ops around them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import draw_step, make_link, make_step, make_value

from fxoffload.passes.calibration import find_profile, find_transfers
from fxoffload.planner.placement import place_transfers
from fxoffload.planner.plan import Offload
from fxoffload.planner.selection import choose_offloads
from fxoffload.planner.simulation import Step, Transfer
from fxoffload.profile import Profile

LINKS = {"nvme": make_link(1.0, 1.0)}


def run_clocks(
    step: Step, transfers: dict[str, Transfer], seconds: list[float]
) -> dict[tuple[str, str], float]:
    """The clocks of a step whose nodes take `seconds`."""
    elapsed = [sum(seconds[:position]) for position in range(len(seconds) + 1)]
    clocks: dict[tuple[str, str], float] = {}
    for value in step.values:
        if (transfer := transfers.get(value.name)) is None:
            continue
        clocks["offload", value.name] = elapsed[value.born + 1]
        clocks["release", value.name] = elapsed[transfer.release]
        clocks["prefetch", value.name] = elapsed[transfer.prefetch]
        clocks["wait", value.name] = elapsed[step.first_use(value)]
    for kinds in (("offload", "release"), ("prefetch", "wait")):
        first = min(clock for (kind, _), clock in clocks.items() if kind in kinds)
        clocks |= {event: clock - first for event, clock in clocks.items() if event[0] in kinds}
    return clocks


def test_nodes_between_two_ops_share_a_factor() -> None:
    a = make_value("a", born=1, last_use=2, first_use=7, freed=8)
    b = make_value("b", born=4, last_use=5, first_use=3, freed=4)
    step = make_step([a, b])
    transfers = {"a": Transfer("nvme", 8, 15), "b": Transfer("nvme", 9, 11)}
    clocks = {
        ("offload", "a"): 0.0,  # In front of f2.
        ("offload", "b"): 6.0,  # In front of f5: two seconds for each of three nodes.
        ("release", "a"): 7.5,  # In front of f8.
        ("release", "b"): 7.5,  # Behind f8, which seems to have taken nothing: passed over.
        ("prefetch", "b"): 0.0,  # In front of b1.
        ("wait", "b"): 6.0,
        ("prefetch", "a"): 6.5,
        ("wait", "a"): 7.0,
    }
    profile = find_profile(step, transfers, clocks, LINKS)
    forward = {f"f{i}": 2.0 for i in (2, 3, 4)} | {f"f{i}": 0.5 for i in (5, 6, 7)}
    backward = {f"b{i}": 3.0 for i in (1, 2)} | {f"b{i}": 0.25 for i in (3, 4, 5, 6)}
    assert {name: profile.find_factor(name) for name in forward} == pytest.approx(forward)
    assert {name: profile.find_factor(name) for name in backward} == pytest.approx(backward)
    # Before the first op and behind the last one: the mean of the graph.
    assert profile.find_factor("f0") == profile.find_factor("f9") == pytest.approx(7.5 / 6)
    assert profile.find_factor("b0") == profile.find_factor("b9") == pytest.approx(7.0 / 6)
    assert profile.find_factor("unknown") == pytest.approx(14.5 / 12)


def test_nothing_moved_tells_nothing() -> None:
    profile = find_profile(make_step([make_value("a")]), {}, {}, LINKS)
    assert profile.default == 1.0
    assert {factor for _, factor in profile.factors} == {1.0}


def test_clocks_of_neighbours_that_changed_places_do_no_harm() -> None:
    a = make_value("a", born=1, last_use=2)
    b = make_value("b", born=2, last_use=3)
    step = make_step([a, b])
    transfers = {"a": Transfer("nvme", 7, 15), "b": Transfer("nvme", 10, 12)}
    clocks = {("offload", "a"): 0.5, ("offload", "b"): 0.0, ("release", "a"): 8.5}
    profile = find_profile(step, transfers, clocks, LINKS)
    assert all(factor > 0.0 for _, factor in profile.factors)
    assert profile.find_factor("f5") == pytest.approx(8.0 / 5)


@given(st.data())
def test_what_every_node_took_alike_is_found(data: st.DataObject) -> None:
    step = draw_step(lambda low, high: data.draw(st.integers(low, high)))
    factor = data.draw(st.floats(0.1, 10.0))
    tiers = {value.name: "nvme" for value in step.values}
    transfers = place_transfers(step, tiers, LINKS)  # pyright: ignore[reportArgumentType]
    if not transfers:
        return
    clocks = run_clocks(step, transfers, [factor * seconds for seconds in step.seconds])
    profile = find_profile(step, transfers, clocks, LINKS)
    for _, found in profile.factors:
        # Where no two ops of a graph are apart, nothing is known of it.
        assert found == pytest.approx(factor) or found == 1.0
    assert profile.default == pytest.approx(factor) or profile.default == 1.0


def test_what_transfers_took_from_compute_is_taken_off() -> None:
    """A second of each transfer of 10 bytes; every node would have taken two by itself."""
    a = make_value("a", nbytes=10, born=1, last_use=2, first_use=7, freed=8)
    b = make_value("b", nbytes=20, born=4, last_use=5, first_use=3, freed=4)
    step = make_step([a, b])
    transfers = {"a": Transfer("nvme", 8, 15), "b": Transfer("nvme", 9, 11)}
    clocks = {
        ("offload", "a"): 0.0,  # In front of f2.
        ("release", "a"): 2.0 * 6 + 3.0,  # In front of f8.
        ("prefetch", "b"): 0.0,  # In front of b1.
        ("wait", "a"): 2.0 * 6 + 3.0,
    }
    links = {"nvme": make_link(1.0, 1.0, compute=10.0)}
    profile = find_profile(step, transfers, clocks, links)
    assert {factor for _, factor in profile.factors} == {2.0}
    assert profile.default == 2.0
    greedy = find_profile(step, transfers, clocks, {"nvme": make_link(1.0, 1.0, compute=1e6)})
    assert greedy.default == 1.25, "half of what was measured is the nodes' own"


@given(st.data())
def test_the_transfers_of_a_plan_are_those_it_was_made_of(data: st.DataObject) -> None:
    step = draw_step(lambda low, high: data.draw(st.integers(low, high)))
    plan = choose_offloads(step, LINKS, budget_bytes="min")
    found = find_transfers(step, plan)
    assert set(found) == {value.name for value, _ in plan.offloads}
    for value, decision in plan.offloads:
        assert isinstance(decision, Offload)
        transfer = found[value.name]
        assert step.names[transfer.prefetch] == decision.prefetched_before
        if decision.blocks:
            assert step.names[transfer.release] == decision.released_before
        else:
            assert transfer.release == step.forward_length


def test_a_profile_without_factors_changes_nothing() -> None:
    assert Profile(()).find_factor("x") == 1.0
