"""Describe what is in memory at the peak, with the calls and the lines of the program."""

from __future__ import annotations

from collections.abc import Mapping

from fxoffload.holders import Holder
from fxoffload.planner.plan import Origin
from fxoffload.planner.simulation import Simulation, find_holders
from fxoffload.planner.step import Step, Transfer
from fxoffload.schedule import CallValue


def describe_holders(
    step: Step,
    simulation: Simulation,
    transfers: Mapping[str, Transfer],
    values: Mapping[str, tuple[CallValue, ...]],
    graphs: Mapping[int, str],
) -> tuple[Holder, ...]:
    """What lives at the peak, largest first.

    values: the calls that have a value, by its name in `step`; none in a step of one graph. graphs:
    what the graph of each call is called.
    """
    origins = {value.name: value.origin for value in step.values}
    found: list[Holder] = []
    for each in find_holders(step, simulation, transfers):
        if each.nbytes <= 0:
            continue
        call, name = values[each.name][0] if each.name in values else (None, each.name)
        graph, origin = "" if call is None else graphs[call], origins.get(each.name, Origin())
        found.append(
            Holder(name, call, graph, origin.module, origin.source, origin.op, each.nbytes)
        )
    return tuple(found)
