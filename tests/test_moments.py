from __future__ import annotations

from hypothesis import given, settings
from steps import make_step, make_value, random_steps

from fxoffload.planner.moments import find_least_bytes, find_live_bytes, find_moments
from fxoffload.planner.residences import find_lower_bound
from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Residence, Step


@settings(deadline=None)
@given(random_steps())
def test_the_extremes_are_those_of_the_simulation(step: Step):
    assert find_live_bytes(step) == simulate(step, {}, {}).live_bytes
    assert find_least_bytes(step) == find_lower_bound(step)


def test_a_run_of_nodes_is_left_out_but_for_its_records():
    held = [10, 30, 20, 30, 50, 40, 20]
    fixed = [Residence(f"t{i}", nbytes, i + 2, i + 2) for i, nbytes in enumerate(held)]
    step = make_step([make_value("v", nbytes=100, first_use=9)], fixed=fixed)
    moments = find_moments(step, 115)
    # Born at 0, used at 19; records from the front: 30, 50; from the back: 20, 40, 50.
    assert [moment.position for moment in moments] == [0, 3, 6, 7, 8, 19]
    assert [moment.live_bytes for moment in moments] == [100, 130, 150, 140, 120, 100]
    assert sum(moment.gap_seconds + moment.seconds for moment in moments) == 20.0
    assert [moment.gap_seconds for moment in moments] == [0, 2, 2, 0, 0, 10]


def test_nodes_below_the_limit_are_left_out():
    step = make_step([make_value("v", nbytes=100, first_use=9)])
    assert [moment.position for moment in find_moments(step, 100)] == [0, 19]


def test_a_step_of_nothing_that_moves_has_no_moments():
    step = make_step([], fixed=[Residence("t", 5, 3, 4)])
    assert find_moments(step, 5) == []
    assert find_least_bytes(step) == 5
