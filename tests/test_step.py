"""What the planner knows of a step."""

from __future__ import annotations

from steps import make_step

from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Residence


def test_fixed_residences_count_from_first_to_last() -> None:
    step = make_step([], forward=2, backward=2, fixed=[Residence("t", 7, 1, 2)])
    assert simulate(step, {}, {}).live_bytes == (0, 7, 7, 0)
