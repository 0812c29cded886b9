"""The plan of a choice: nodes by name, and reasons."""

from __future__ import annotations

from steps import EXACT, choose_plan, make_link, make_step, make_value

from fxoffload.planner.link import Link
from fxoffload.planner.plan import Offload
from fxoffload.planner.step import Residence

FAST = {"nvme": Link(1e12, 1e12, 0.0)}


def test_plan_names_the_nodes_of_its_transfers() -> None:
    """A write of 3.5 seconds, asked for at 1; a read that may start at once, as there is room."""
    step = make_step([make_value("a")])
    plan = choose_plan(step, {"nvme": make_link(3.5, 3.5)}, **EXACT)
    assert plan.decisions == (Offload("nvme", "", "b0"),)


def test_plan_says_what_each_reason_costs_at_the_peak() -> None:
    values = [
        make_value("a", born=0, freed=9, refusal="returned"),
        make_value("b", born=0, freed=9, refusal="returned"),
        make_value("c", born=0, freed=9, refusal="small", nbytes=30),
        make_value("caller", refusal="input that belongs to the caller", owned=False),
        make_value("gone", born=0, last_use=1, first_use=0, freed=0, refusal="early"),
    ]
    step = make_step(values, fixed=[Residence("peak", 1000, 15, 15)])
    plan = choose_plan(step, FAST, budget_bytes="min")
    assert plan.peak_bytes == 1230
    assert plan.kept_at_peak == (("returned", 200), ("small", 30))
