"""What the planner knows of a step."""

from __future__ import annotations

from dataclasses import replace

from steps import make_step, make_value

from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Phase, Residence


def test_fixed_residences_count_from_first_to_last() -> None:
    step = make_step([], forward=2, backward=2, fixed=[Residence("t", 7, 1, 2)])
    assert simulate(step, {}, {}).live_bytes == (0, 7, 7, 0)


def test_a_value_turns_where_its_forwards_end() -> None:
    """Of several phases, the one in which the last forward reads it."""
    phases = (Phase(0, 3, 5), Phase(5, 7, 10))
    values = [make_value("a", last_use=2), make_value("b", born=5, last_use=6)]
    step = replace(make_step(values), phases=phases)
    assert [step.find_turn(value) for value in step.values] == [3, 7]


def test_what_has_a_refusal_may_not_move() -> None:
    values = [make_value("a"), make_value("b", refusal="mutated in the forward")]
    assert [value.name for value in make_step(values).movable] == ["a"]
