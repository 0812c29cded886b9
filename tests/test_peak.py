"""What is in memory at the peak, by calls and lines."""

from __future__ import annotations

from dataclasses import replace

from steps import make_step, make_value

from fxoffload.holders import Holder
from fxoffload.planner.peak import describe_holders
from fxoffload.planner.plan import Origin
from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Residence


def test_all_that_lives_at_the_peak_largest_first() -> None:
    origin = Origin("layers.0", "model.py:3", "tanh")
    values = [
        replace(make_value("0/a", born=1, last_use=3, first_use=6, freed=7), origin=origin),
        make_value("b", born=4, last_use=5, first_use=2, freed=3),
    ]
    fixed = [Residence("scratch", 700, 6, 6), Residence("nothing", 0, 6, 6)]
    step = make_step(values, fixed=[*fixed, Residence("elsewhere", 7, 2, 2)])
    found = describe_holders(step, simulate(step, {}, {}), {}, {"0/a": ((0, "a"),)}, {0: "graph"})
    assert found == (
        Holder("scratch", None, "", "", "", "", 700),
        Holder("a", 0, "graph", "layers.0", "model.py:3", "tanh", 100),
        Holder("b", None, "", "", "", "", 100),
    )
