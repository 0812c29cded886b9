"""Footprint: which storages lie in memory, and until when, with and without fused loops."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import toys
from lives import BYTES, build, lives, make_docstring_graph, traffic
from torch._prims.rng_prims import run_and_save_rng_state
from toys import NBYTES, Sketch, aten

from fxoffload.graph import TrainingGraph
from fxoffload.passes.footprint import Footprint, Loop
from fxoffload.torch_internals import find_store_policy


def test_without_fusion_every_result_lies_in_memory() -> None:
    step = build(make_docstring_graph(), fuses=False)
    assert lives(step)["mm"] == ("mm", "mul")
    assert lives(step)["mul"] == ("mul", "relu")


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


def test_storages_have_members_and_last_uses() -> None:
    """A view is no storage; who reads it reads what it looks at."""
    half = Sketch().forward
    x = half.input("x", torch.empty(16, 16))
    mm = half.call(aten.mm.default, x, x, name="mm")
    view = half.call(aten.t.default, mm, name="view")
    relu = half.call(aten.relu.default, view, name="relu")
    out = half.call(aten.mm.default, relu, x, name="out")
    half.finish([out])
    footprint = Footprint(half.graph, fuses=True)
    assert footprint.members == {x: [x], mm: [mm, view], relu: [relu], out: [out]}
    assert footprint.roots[view] is mm
    assert footprint.in_memory == {x, mm, relu, out}, "a call reads relu from memory"
    assert [footprint.born(root) for root in (mm, relu, out)] == [1, 3, 4]
    assert [footprint.last_use[root] for root in (x, mm, relu, out)] == [4, 3, 4, 4]
    assert footprint.nbytes(mm) == NBYTES


def test_what_only_loops_read_is_not_in_memory() -> None:
    half = Sketch().forward
    x = half.input("x", torch.empty(16, 16))
    mm = half.call(aten.mm.default, x, x, name="mm")
    sin = half.call(aten.sin.default, mm, name="sin")
    half.finish([half.call(aten.cos.default, sin, name="out")])
    fused, unfused = (Footprint(half.graph, fuses=fuses) for fuses in (True, False))
    assert sin not in fused.in_memory
    assert (fused.last_use[mm], unfused.last_use[mm]) == (3, 2)
    assert sin in unfused.in_memory


def test_ops_of_a_loop() -> None:
    """One read, two nodes, and a constant that stands in both."""
    half = Sketch().forward
    x = half.input("x", torch.empty(4))
    add = half.call(aten.add.Tensor, x, 2)
    mul = half.call(aten.mul.Tensor, add, 2)
    assert Loop(frozenset({x}), frozenset({add, mul})).count_ops() == 4
    other = half.call(aten.mul.Tensor, mul, 3)
    assert Loop(frozenset({x}), frozenset({add, mul, other})).count_ops() == 6
