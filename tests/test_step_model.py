"""build_step: nodes, residences and seconds, with and without fused loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import BYTES, build, lives, make_docstring_graph, traffic
from toys import NBYTES, Sketch, aten

from fxoffload.cost import CostModel, DeviceSpeed
from fxoffload.graph import TrainingGraph
from fxoffload.passes import step_model
from fxoffload.planner.residences import find_lower_bound
from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Step


@pytest.mark.parametrize("fuses", [True, False])
def test_fused_loops_take_time_for_masks(fuses: bool) -> None:
    graph, elements = toys.make_masked(saves_mask=True), 16 * 16
    slow = CostModel(links={}, speed=DeviceSpeed(1e30, 1.0, 300.0, 20.0))
    plain, masked = (build(graph, cost=cost, fuses=fuses) for cost in (BYTES, slow))
    more = [b - a for a, b in zip(plain.seconds, masked.seconds, strict=True)]
    found = {name: s for name, s in zip(plain.names, more, strict=True) if s}
    assert found == ({"mask": 300.0 * elements, "fill": 20.0 * elements} if fuses else {})
    (none,) = {
        build(toys.make_masked(saves_mask=False), cost=cost).seconds for cost in (BYTES, slow)
    }
    assert none


def test_before_and_after() -> None:
    """mm lives until the loop has read it, mul nowhere; the output and the gradient to the end.

    The gradient of the output is there from the start of the backward.
    """
    step = build(make_docstring_graph())
    assert step.names == (
        "x", "mm", "mul", "relu", "out", "output", "relu", "tangents_1", "g0", "output",
    )  # fmt: skip
    assert (step.forward_length, step.forward_inputs, step.backward_inputs) == (6, 1, 2)
    assert lives(step) == {
        "mm": ("mm", "relu"),
        "out": ("out", "output"),
        "tangents_1": ("relu", "g0"),
        "g0": ("g0", "output"),
    }
    assert [(residence.first, residence.last) for residence in step.fixed] == [
        (1, 3),
        (4, 9),
        (6, 8),
        (8, 9),
    ]
    (value,) = step.values
    assert (value.name, value.born, value.last_use) == ("relu", 3, 4)
    assert (step.first_use(value), step.freed(value)) == (8, 8)


def test_saved_value_lives_until_the_loops_that_read_it_have_run() -> None:
    """The loop that reads mm stands where relu is, its last node; mul alone is in registers."""
    step = build(make_docstring_graph(saved=("mm", "relu")))
    (mm, _) = step.values
    assert (mm.name, step.names[mm.last_use]) == ("mm", "relu")
    step = build(make_docstring_graph(saved=("mm", "relu")), fuses=False)
    assert step.names[step.values[0].last_use] == "mul"


def test_traffic_of_a_loop_is_its_ends() -> None:
    """relu's loop reads mm and writes relu; mul moves nothing. mm reads its input once."""
    assert traffic(build(make_docstring_graph(), cost=BYTES)) == {
        "mm": 2, "relu": 2, "out": 3, "g0": 3,
    }  # fmt: skip
    unfused = traffic(build(make_docstring_graph(), cost=BYTES, fuses=False))
    assert unfused == {"mm": 2, "mul": 2, "relu": 2, "out": 3, "g0": 3}


def test_names_are_of_nodes_that_will_not_move() -> None:
    """A view may be moved or erased: what stands in front of it stands in front of its follower."""
    sketch = Sketch()
    x = sketch.forward.input("x", torch.empty(16, 16))
    sin = sketch.forward.call(aten.sin.default, x, name="sin")
    view = sketch.forward.call(aten.t.default, sin, name="view")
    out = sketch.forward.call(aten.cos.default, view, name="out")
    (saved,) = sketch.save(sin)
    gradient = sketch.backward.call(aten.sin.default, saved, name="g")
    step = build(sketch.finish([out], [gradient]))
    assert step.names == ("x", "sin", "out", "out", "output", "sin", "g", "output")
    assert step.seconds[2] == 0.0, "a view takes no time"


def test_peak_of_a_chain() -> None:
    """When the backward makes its first gradient: four layers, the output and its gradient."""
    step = build(toys.make_chain(4), fuses=False)
    assert simulate(step, {}, {}).peak_bytes == 7 * NBYTES
    assert find_lower_bound(step) < 7 * NBYTES


def test_zoo_steps_are_sound(zoo_graph: TrainingGraph) -> None:
    for fuses in (True, False):
        step = build(zoo_graph, fuses=fuses)
        assert_sound(step)
        assert step == build(zoo_graph, fuses=fuses)


def assert_sound(step: Step) -> None:
    length, end = step.forward_length, len(step.seconds)
    assert len(step.names) == end
    assert all(0 <= r.first <= r.last < end for r in step.fixed)
    assert all(residence.nbytes > 0 for residence in step.fixed)
    names = [residence.name for residence in step.fixed if residence.first < length]
    assert len(names) == len(set(names))
    assert not set(names) & {value.name for value in step.values}
    for value in step.values:
        assert 0 <= value.born <= value.last_use < length - 1
        assert length <= step.first_use(value) or value.refusal is not None
        assert step.first_use(value) <= step.freed(value) + 1 <= end
        assert value.is_read or step.first_use(value) == step.freed(value) + 1


@settings(deadline=None, max_examples=100)
@given(toys.random_graphs(), st.booleans())
def test_random_steps_are_sound(graph: TrainingGraph, fuses: bool) -> None:
    step = build(graph, fuses=fuses)
    assert_sound(step)
    movable = {value.name for value in step.values if value.refusal is None}
    assert find_lower_bound(step) <= simulate(step, {}, {}).peak_bytes or not movable
    kept = tuple(replace(value, refusal="kept") for value in step.values)
    assert find_lower_bound(replace(step, values=kept)) <= simulate(step, {}, {}).peak_bytes


def test_a_tangent_lives_as_long_as_torch_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_model, "keeps_tangents", lambda: True)
    assert lives(build(make_docstring_graph()))["tangents_1"] == ("relu", "output")
    monkeypatch.setattr(step_model, "keeps_tangents", lambda: False)
    assert lives(build(make_docstring_graph()))["tangents_1"] == ("relu", "g0")


def test_what_a_kernel_takes_for_itself_lives_while_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = make_docstring_graph()
    taken = {"out": 100, "g0": 200}
    without = build(graph)
    monkeypatch.setattr(step_model, "count_scratch_bytes", lambda node: taken.get(node.name, 0))
    step = build(graph)
    more = [a - b for a, b in zip(step.fixed_bytes, without.fixed_bytes, strict=True)]
    assert more == [taken.get(name, 0) for name in step.names]
