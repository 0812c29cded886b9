"""build_step: nodes, lives of storages and seconds, with and without fused loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._prims.rng_prims import run_and_save_rng_state
from toys import Sketch, aten, make_cost

from fxoffload.cost import CostModel, DeviceSpeed
from fxoffload.graph import TrainingGraph
from fxoffload.passes import step_model
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.step_model import build_step
from fxoffload.planner.simulation import Step, find_lower_bound, simulate
from fxoffload.torch_internals import find_store_policy

NBYTES = 16 * 16 * 4
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


def test_without_fusion_every_result_lies_in_memory() -> None:
    step = build(make_docstring_graph(), fuses=False)
    assert lives(step)["mm"] == ("mm", "mul")
    assert lives(step)["mul"] == ("mul", "relu")


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


def test_reader_through_a_view_counts() -> None:
    sketch = Sketch()
    x = sketch.forward.input("x", torch.empty(16, 16))
    mm = sketch.forward.call(aten.mm.default, x, x, name="mm")
    view = sketch.forward.call(aten.t.default, mm, name="view")
    sketch.forward.call(aten.mm.default, x, x, name="other")
    out = sketch.forward.call(aten.mm.default, view, x, name="out")
    tangent = sketch.backward.input("tangents_1", torch.empty(16, 16))
    gradient = sketch.backward.call(aten.sin.default, tangent, name="g")
    step = build(sketch.finish([out], [gradient]))
    assert lives(step)["mm"] == ("mm", "out")
    assert "view" not in lives(step)


@pytest.mark.parametrize(("through_view", "last"), [(True, "total"), (False, "mul")])
def test_what_a_call_reads_through_a_view_is_stored_for_it(through_view: bool, last: str) -> None:
    """The sum in front of the call computes mul for itself, and reads mm for that."""
    sketch = Sketch()
    x = sketch.forward.input("x", torch.empty(16, 16))
    mm = sketch.forward.call(aten.mm.default, x, x, name="mm")
    mul = sketch.forward.call(aten.mul.Tensor, mm, x, name="mul")
    sum_ = sketch.forward.call(aten.sum.dim_IntList, mul, [0], name="total")
    product = sketch.forward.call(aten.t.default, mul, name="view") if through_view else mul
    out = sketch.forward.call(aten.mm.default, product, x, name="out")
    tangent = sketch.backward.input("tangents_1", torch.empty(16, 16))
    gradient = sketch.backward.call(aten.sin.default, tangent, name="g")
    step = build(sketch.finish([out, sum_], [gradient]), cost=BYTES)
    assert lives(step)["mm"] == ("mm", last)
    assert lives(step)["mul"] == ("mul", "out")
    # The sum reads mm and x in place of mul.
    assert traffic(step)["total"] == (2 if through_view else 1)


def make_read_twice(
    target: object, *, call_between: bool, through: bool = False, reads: int = 1
) -> TrainingGraph:
    """`loop`, target of the sum of so many inputs, read by two sums, one behind a call if asked.

    through: the later one reads it through a sine that stands with the earlier one.
    """
    sketch = Sketch()
    half = sketch.forward
    summed, *others = (half.input(f"x{index}", torch.empty(16, 16)) for index in range(reads))
    for other in others:
        summed = half.call(aten.add.Tensor, summed, other)
    # In memory, and not an input: its life shows.
    made = half.call(aten.mm.default, summed, summed, name="made")
    loop = half.call(target, made, name="inner" if others else "loop")
    for number, other in enumerate(others, start=1):
        name = "loop" if number == len(others) else f"inner{number}"
        loop = half.call(aten.add.Tensor, loop, other, name=name)
    last = half.call(aten.sin.default, loop, name="sine") if through else loop
    first = half.call(aten.sum.default, loop, name="first")
    between = half.call(aten.mm.default, summed, summed, name="call") if call_between else summed
    second = half.call(aten.sum.default, last, name="second")
    tangent = sketch.backward.input("tangents_1", torch.empty(16, 16))
    gradient = sketch.backward.call(aten.sin.default, tangent, name="g")
    return sketch.finish([first, second, between], [gradient])


@pytest.mark.parametrize("through", [False, True])
def test_dear_loop_is_stored_for_readers_behind_a_call(through: bool) -> None:
    """Others are computed again, so that what they read lives on."""
    build_one = partial(make_read_twice, through=through)
    dear = build(build_one(aten.tanh.default, call_between=True))
    assert lives(dear)["made"] == ("made", "loop")
    assert lives(dear)["loop"] == ("loop", "second")
    cheap = build(build_one(aten.cos.default, call_between=True))
    assert lives(cheap)["made"] == ("made", "second")
    assert "loop" not in lives(cheap)
    fused = build(build_one(aten.tanh.default, call_between=False))
    assert lives(fused)["made"] == ("made", "second")
    assert "loop" not in lives(fused)


@pytest.mark.parametrize("divides", [True, False])
def test_dear_loop_is_stored_where_its_sum_is_read_with_it(divides: bool) -> None:
    """A softmax: no loop sums its exponentials up and divides them by that sum."""
    sketch = Sketch()
    half = sketch.forward
    x = half.input("x", torch.empty(16, 16))
    made = half.call(aten.mm.default, x, x, name="made")
    exp = half.call(aten.exp.default, made, name="exp")
    total = half.call(aten.sum.dim_IntList, exp, [1], True, name="total")
    root = half.call(aten.sqrt.default, total, name="root")
    divisor = root if divides else half.input("y", torch.empty(16, 1))
    scaled = half.call(aten.div.Tensor, exp, divisor, name="scaled")
    out = half.call(aten.mm.default, scaled, x, name="out")
    tangent = sketch.backward.input("tangents_1", torch.empty(16, 16))
    gradient = sketch.backward.call(aten.sin.default, tangent, name="g")
    step = build(sketch.finish([out, total], [gradient]))
    assert lives(step).get("exp") == (("exp", "scaled") if divides else None)
    assert lives(step)["made"] == ("made", "exp" if divides else "scaled")


@pytest.mark.parametrize(("more", "is_stored"), [(0, False), (1, True)])
def test_loop_of_many_reads_is_stored_for_readers_behind_a_call(more: int, is_stored: bool) -> None:
    policy = find_store_policy(torch.device("cpu"))
    step = build(
        make_read_twice(aten.cos.default, call_between=True, reads=policy.reused_reads + more)
    )
    assert ("loop" in lives(step)) is is_stored


@pytest.mark.parametrize(("scatters", "last"), [(True, "put"), (False, "out")])
def test_what_is_put_by_indices_is_stored_at_once(scatters: bool, last: str) -> None:
    """As no other loop could make it again: what it reads is free when it has run."""
    sketch = Sketch()
    half = sketch.forward
    x = half.input("x", torch.empty(16, 16))
    index = half.input("index", torch.empty(16, dtype=torch.int64))
    made = half.call(aten.mm.default, x, x, name="made")
    if scatters:
        put = half.call(aten.index_put.default, x, [index], made, True, name="put")
    else:
        put = half.call(aten.add.Tensor, x, made, name="put")
    product = half.call(aten.mm.default, x, x, name="product")
    out = half.call(aten.add.Tensor, put, product, name="out")
    tangent = sketch.backward.input("tangents_1", torch.empty(16, 16))
    gradient = sketch.backward.call(aten.sin.default, tangent, name="g")
    step = build(sketch.finish([out], [gradient]))
    assert lives(step)["made"] == ("made", last)
    assert ("put" in lives(step)) is scatters


def test_operator_of_higher_order_is_a_call() -> None:
    """What it returns lies in memory, however deep in its results."""
    sketch = Sketch()
    x = sketch.forward.input("x", torch.empty(16, 16))
    both = sketch.forward.graph.call_function(run_and_save_rng_state, (aten.sort.default, x))
    sort = sketch.forward.graph.call_function(toys.operator.getitem, (both, 1))
    values = sketch.forward.graph.call_function(toys.operator.getitem, (sort, 0))
    values.meta["val"] = x.meta["val"].clone()
    out = sketch.forward.call(aten.sin.default, values, name="out")
    tangent = sketch.backward.input("tangents_1", torch.empty(16, 16))
    gradient = sketch.backward.call(aten.sin.default, tangent, name="g")
    step = build(sketch.finish([out], [gradient]))
    assert lives(step)[values.name] == (both.name, "out")


def test_items_of_one_op_are_storages_of_their_own() -> None:
    """Both are made by the op: they are born with it, and its reads count once."""
    sketch = Sketch()
    x = sketch.forward.input("x", torch.empty(16, 16))
    sort = sketch.forward.call(aten.sort.default, x, name="sort")
    values = sketch.forward.call(toys.operator.getitem, sort, 0, name="values")
    indices = sketch.forward.call(toys.operator.getitem, sort, 1, name="indices")
    out = sketch.forward.call(aten.gather.default, values, 1, indices, name="out")
    tangent = sketch.backward.input("tangents_1", torch.empty(16, 16))
    gradient = sketch.backward.call(aten.sin.default, tangent, name="g")
    step = build(sketch.finish([out], [gradient]), fuses=False, cost=BYTES)
    assert lives(step)["values"][0] == lives(step)["indices"][0] == "sort"
    assert traffic(step)["sort"] == 1 + 1 + 2  # x, values, and indices of twice the size


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
        assert step.first_use(value) <= step.freed(value) < end


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
