"""When values are on the device, and what that adds up to."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from steps import draw_step, make_step, make_value, random_transfers

from fxoffload.planner.link import Link
from fxoffload.planner.residences import find_lower_bound, find_working_sets
from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Residence


def test_lower_bound_is_the_largest_working_set() -> None:
    """What is read or written at one moment, plus what may not move."""
    values = [
        make_value("a", last_use=3),
        make_value("b", born=2, last_use=3, nbytes=30),
        make_value("fixed", nbytes=5, refusal="mutated in the forward"),
    ]
    step = make_step(values, fixed=[Residence("t", 7, 3, 3)])
    assert find_working_sets(step, {"a", "b"})[2:6] == (135, 142, 5, 5)
    assert find_lower_bound(step) == 142


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_no_transfers_get_below_the_lower_bound(data: st.DataObject) -> None:
    step = draw_step(lambda low, high: data.draw(st.integers(low, high)))
    transfers = data.draw(random_transfers(step))
    peak = simulate(step, transfers, {"nvme": Link(1e9, 1e9, 0.0)}).peak_bytes
    assert peak >= find_lower_bound(step)
