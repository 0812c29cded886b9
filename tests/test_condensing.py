"""Condensing: a step in segments takes as long, and holds no less, than the step itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import draw_step, make_link, make_step, make_value

from fxoffload.planner.condensing import condense
from fxoffload.planner.placement import place_transfers
from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Phase, Residence, Transfer

LINKS = {"nvme": make_link(2.0, 3.0, latency=0.1)}


def test_nodes_between_changes_are_a_segment() -> None:
    value = make_value("v", born=1, last_use=3, first_use=2, freed=4)
    step = make_step(
        [value], forward=[0.0] * 8, backward=[0.0] * 8, fixed=[Residence("t", 50, 6, 6)]
    )
    condensed = condense(step)
    # The value is born in 1, dies behind 3, is read in 10 and freed behind 12; 7 ends the forward.
    assert condensed.starts == (0, 1, 2, 4, 7, 8, 10, 11, 13, 16)
    assert condensed.step.fixed_bytes == (0, 0, 0, 50, 0, 0, 0, 0, 0)
    (moved,) = condensed.step.values
    assert (moved.born, moved.last_use, moved.first_use, moved.freed) == (1, 2, 1, 2)


@pytest.mark.parametrize("freed", [4, 7])
def test_a_value_that_nothing_reads_does_not_come_back(freed: int) -> None:
    value = make_value("v", born=1, last_use=3, first_use=freed + 1, freed=freed)
    step = make_step([value], forward=[0.0] * 8, backward=[0.0] * 8)
    condensed = condense(step)
    (moved,) = condensed.step.values
    assert not moved.is_read
    prefetch = condensed.step.first_use(moved)
    found = condensed.expand({"v": Transfer("nvme", 4, prefetch)})
    assert found == {"v": Transfer("nvme", 7, 8 + freed + 1)}


def test_nodes_that_take_long_are_not_joined() -> None:
    step = make_step([], forward=[0.0, 1.0, 0.0004, 0.0004, 1.0], backward=[0.0, 0.0])
    assert condense(step).starts == (0, 1, 2, 4, 5, 7)
    assert sum(condense(step).step.seconds) == step.compute_seconds


def test_a_value_that_may_not_move_is_fixed() -> None:
    stays = make_value("s", nbytes=70, refusal="state", born=2, last_use=3, first_use=1, freed=1)
    value = make_value("v", born=1, last_use=3, first_use=2, freed=4)
    step = make_step([stays, value], forward=[0.0] * 8, backward=[0.0] * 8)
    for whole in (step, replace(step, stops=tuple(range(16)))):
        found = condense(whole)
        assert [each.name for each in found.step.values] == ["v"]
        moved = {"v": Transfer("nvme", None, found.starts.index(10))}
        for transfers in ({}, moved):
            peak_bytes = simulate(step, found.expand(transfers), LINKS).peak_bytes
            assert simulate(found.step, transfers, LINKS).peak_bytes == peak_bytes


def test_a_step_that_says_where_ops_stand_stays() -> None:
    step = make_step([make_value("v")], forward=[0.0] * 10, backward=[0.0] * 10)
    stops = replace(step, stops=(0, 5, 15))
    assert condense(stops).step is stops
    phases = replace(step, phases=(Phase(0, 10, 12), Phase(12, 15, 20)))
    assert condense(phases).step is phases


@settings(deadline=None)
@given(st.data())
def test_transfers_take_as_long_and_no_more_memory_in_the_step_itself(data: st.DataObject) -> None:
    def draw_int(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    drawn = draw_step(draw_int, refusals=True)
    # Some nodes take no time, so that they are joined.
    free = data.draw(st.sets(st.sampled_from(range(len(drawn.seconds)))))
    seconds = (0.0 if at in free else each for at, each in enumerate(drawn.seconds))
    step = replace(drawn, seconds=tuple(seconds))
    condensed = condense(step)
    assert condensed.step.forward_inputs <= step.forward_inputs
    moved = {value.name: "nvme" for value in condensed.step.movable if draw_int(0, 1)}
    budget = max(step.fixed_bytes) + draw_int(0, 500)
    transfers = place_transfers(condensed.step, moved, LINKS, budget_bytes=budget)
    found = simulate(condensed.step, transfers, LINKS)
    whole = simulate(step, condensed.expand(transfers), LINKS)
    assert abs(whole.step_seconds - found.step_seconds) < 1e-9
    assert whole.peak_bytes <= found.peak_bytes
    assert (
        whole.live_bytes[step.forward_length - 1]
        == found.live_bytes[-1 + condensed.step.forward_length]
    )
