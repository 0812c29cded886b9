"""Steps of small graphs: how long each storage lives, and how many bytes each node moves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from toys import NBYTES, Sketch, aten, make_cost

from fxoffload.cost import CostModel, DeviceSpeed
from fxoffload.graph import TrainingGraph
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.step_model import build_step
from fxoffload.planner.step import Step

# One byte a second: seconds are traffic.
BYTES = CostModel(links={}, speed=DeviceSpeed(1e30, 1.0))


def build(graph: TrainingGraph, *, fuses: bool = True, cost: CostModel | None = None) -> Step:
    values = find_saved_values(graph)
    return build_step(graph, values, cost or make_cost(1.0), fuses=fuses)


def lives(step: Step) -> dict[str, tuple[str, str]]:
    """First and last node of every fixed residence."""
    return {r.name: (step.names[r.first], step.names[r.last]) for r in step.fixed}


def traffic(step: Step) -> dict[str, int]:
    """Bytes that each node moves, in storages of the chain."""
    pairs = zip(step.names, step.seconds, strict=True)
    return {name: round(seconds / NBYTES) for name, seconds in pairs if seconds}


def make_docstring_graph(saved: Sequence[str] = ("relu",)) -> TrainingGraph:
    """mm, then a loop of mul and relu, then mm."""
    sketch = Sketch()
    x = sketch.forward.input("x", torch.empty(16, 16))
    mm = sketch.forward.call(aten.mm.default, x, x, name="mm")
    mul = sketch.forward.call(aten.mul.Tensor, mm, 2, name="mul")
    relu = sketch.forward.call(aten.relu.default, mul, name="relu")
    out = sketch.forward.call(aten.mm.default, relu, x, name="out")
    nodes = {"mm": mm, "mul": mul, "relu": relu}
    placeholders = sketch.save(*(nodes[name] for name in saved))
    tangent = sketch.backward.input("tangents_1", torch.empty(16, 16))
    gradient = tangent
    for index, placeholder in enumerate(placeholders):
        gradient = sketch.backward.call(aten.mul.Tensor, gradient, placeholder, name=f"g{index}")
    return sketch.finish([out], [gradient])
