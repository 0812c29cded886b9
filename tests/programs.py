"""Small programs of one graph with two values, for the tests of schedules."""

from __future__ import annotations

from steps import make_step, make_value

from fxoffload.planner.graph_model import GraphModel, build_graph_model
from fxoffload.planner.step import Residence
from fxoffload.schedule import Half, HalfMeasurement, Program

UNMEASURED = HalfMeasurement({})


def make_model() -> GraphModel:
    """Two values of 100 bytes, a needed first and last; 10 nodes of a second each way."""
    values = [
        make_value("a", born=1, last_use=3, first_use=6, freed=7),
        make_value("b", born=4, last_use=5, first_use=2, freed=3),
    ]
    step = make_step(values, fixed=[Residence("scratch", 7, 2, 2)])
    forward = [(("offload", "a"), 2), (("release", "a"), 4), (("offload", "b"), 5)]
    forward += [(("release", "b"), 6)]
    backward = [(("prefetch", "b"), 2), (("wait", "b"), 2), (("prefetch", "a"), 6)]
    backward += [(("wait", "a"), 6)]
    return build_graph_model(step, forward, backward)


def make_mirrored_model(values: int) -> GraphModel:
    """Values of 100 bytes that the backward needs in the opposite order; two nodes for each.

    The last one is released behind the last node, where the backward begins.
    """
    length = 2 * values
    made = [
        make_value(
            f"value_with_a_name_{index}",
            born=2 * index,
            last_use=2 * index + 1,
            first_use=length - 2 * index - 2,
            freed=length - 2 * index - 1,
        )
        for index in range(values)
    ]
    forward = [
        op
        for value in made
        for op in (
            (("offload", value.name), value.born + 1),
            (("release", value.name), value.born + 2),
        )
    ]
    backward = [
        ((kind, value.name), value.first_use)
        for value in reversed(made)
        for kind in ("prefetch", "wait")
    ]
    return build_graph_model(make_step(made, forward=length, backward=length), forward, backward)


MODEL = make_model()
MODELS = {"block": MODEL}


def make_program(calls: int) -> Program:
    forwards = tuple(Half("block", call, True) for call in range(calls))
    return forwards + tuple(Half("block", call, False) for call in reversed(range(calls)))


def parse_program(halves: str) -> Program:
    """Such as F0 F1 B0 B1."""
    return tuple(Half("block", int(half[1:]), half[0] == "F") for half in halves.split())
