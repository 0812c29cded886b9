"""insert_transfers: the graphs that it writes, and bitwise equal results of the step."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import toys
from expecttest import assert_expected_inline
from hypothesis import given, settings
from torch import Tensor
from toys import WEIGHT, Sketch, aten, describe, names_of

from fxoffload.errors import PlanError
from fxoffload.graph import TrainingGraph, get_results
from fxoffload.ops import OFFLOAD, OPS, PREFETCH, RELEASE, WAIT
from fxoffload.passes.insertion import FUSION_REACH, insert_transfers
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.verification import verify_transfers

Tracer = Callable[..., TrainingGraph]


def move_everything(graph: TrainingGraph) -> TrainingGraph:
    """Insert for every value that may move, checked against a copy; returns that copy."""
    before = toys.copy_graph(graph)
    values = find_saved_values(graph)
    insert_transfers(graph, values, store="store")
    verify_transfers(graph)
    toys.assert_matched(graph)
    for target, module in (
        (OFFLOAD, graph.forward),
        (RELEASE, graph.forward),
        (PREFETCH, graph.backward),
        (WAIT, graph.backward),
    ):
        assert len(names_of(module.graph, target)) == sum(v.has_ops for v in values)
    return before


# --- what is written ----------------------------------------------------------------------------


def make_normed(sketch: Sketch) -> TrainingGraph:
    """A product, two loops of which the first is saved, a view of the second, and a product."""
    x = sketch.forward.input("x", torch.empty(16, 16))
    mm = sketch.forward.call(aten.mm.default, x, x, name="mm")
    norm = sketch.forward.call(aten.tanh.default, mm, name="norm")
    scaled = sketch.forward.call(aten.mul.Tensor, norm, 2, name="scaled")
    rows = sketch.forward.call(aten.t.default, scaled, name="rows")
    out = sketch.forward.call(aten.mm.default, rows, x, name="out")
    saved = sketch.save(norm, scaled)
    gradients = [sketch.backward.call(aten.sin.default, value) for value in saved]
    return sketch.finish([out], gradients)


@pytest.mark.parametrize(
    ("fuses", "expected"),
    [
        (False, ["mm", "norm", "offload_norm", "scaled", "offload_scaled", "rows", "out"]),
        # The loops become one, and the second's view is of what is stored.
        (True, ["mm", "norm", "scaled", "offload_scaled", "rows", "offload_norm", "out"]),
    ],
)
def test_offload_stands_behind_loops_that_are_fused(fuses: bool, expected: list[str]) -> None:
    graph = make_normed(Sketch())
    insert_transfers(graph, find_saved_values(graph), store="store", fuses=fuses)
    verify_transfers(graph)
    names = names_of(graph.forward.graph)
    assert [name for name in names if name in expected] == expected


def test_offload_waits_no_longer_than_loops_are_fused() -> None:
    """Otherwise a program of many loops and no call would keep every value to its end."""
    layers = FUSION_REACH + 10
    graph = toys.make_chain(layers)
    insert_transfers(graph, find_saved_values(graph), store="store", fuses=True)
    names = [name for name in names_of(graph.forward.graph) if "release" not in name]
    reader = 1
    assert names[names.index("offload_layer0") + 1] == f"layer{reader + FUSION_REACH + 1}"
    assert names[-1] == f"offload_layer{layers - 1}"


def test_text_of_one_value() -> None:
    graph = toys.make_chain(1)
    move_everything(graph)
    assert_expected_inline(
        describe(graph.forward.graph),
        """\
x = input
layer0 = aten.sin.default(x)
offload_layer0 = fxoffload.offload.default(layer0, store, layer0, nvme, True, 0)
out = aten.cos.default(layer0)
release_default = fxoffload.release.default(offload_layer0, layer0)
return (out, offload_layer0)""",
    )
    assert_expected_inline(
        describe(graph.backward.graph),
        """\
offload_layer0 = input
tangents_1 = input
prefetch_default = fxoffload.prefetch.default(offload_layer0)
wait_layer0 = fxoffload.wait.default(offload_layer0, [16, 16], [16, 1], torch.float32, cpu)
grad0 = aten.mul.Tensor(tangents_1, wait_layer0)
return (grad0,)""",
    )


def make_two_views() -> TrainingGraph:
    """A transposed view and a slice of one storage; each is read by the backward."""
    sketch = Sketch()
    a = sketch.forward.call(
        aten.sin.default, sketch.forward.input("x", torch.empty(4, 6)), name="a"
    )
    view = sketch.forward.call(aten.t.default, a, name="view")
    part = sketch.forward.call(aten.slice.Tensor, a, 1, 2, 6, name="part")
    out = sketch.forward.call(aten.cos.default, part, name="out")
    saved_view, saved_part = sketch.save(view, part)
    first = sketch.backward.call(aten.exp.default, saved_part, name="first")
    second = sketch.backward.call(aten.exp.default, saved_view, name="second")
    return sketch.finish([out], [first, second])


def test_text_of_two_views_of_one_storage() -> None:
    graph = make_two_views()
    before = move_everything(graph)
    assert_expected_inline(
        describe(graph.forward.graph),
        """\
x = input
a = aten.sin.default(x)
offload_a = fxoffload.offload.default(a, store, a, nvme, True, 64)
part = aten.slice.Tensor(a, 1, 2, 6)
out = aten.cos.default(part)
release_default = fxoffload.release.default(offload_a, a)
return (out, offload_a)""",
    )
    assert_expected_inline(
        describe(graph.backward.graph),
        """\
offload_a = input
prefetch_default = fxoffload.prefetch.default(offload_a)
wait_a = fxoffload.wait.default(offload_a, [4, 6], [6, 1], torch.float32, cpu)
as_strided_default = aten.as_strided.default(wait_a, [6, 4], [1, 6], 0)
as_strided_default_1 = aten.as_strided.default(wait_a, [4, 4], [6, 1], 2)
first = aten.exp.default(as_strided_default_1)
second = aten.exp.default(as_strided_default)
return (first, second)""",
    )
    toys.assert_same_step(before, graph)


def test_text_of_several_backward_readers() -> None:
    """One prefetch, one wait, before the first of them."""
    sketch = Sketch()
    a = sketch.forward.call(aten.sin.default, sketch.forward.input("x", torch.empty(4)), name="a")
    out = sketch.forward.call(aten.cos.default, a, name="out")
    (saved,) = sketch.save(a)
    tangent = sketch.backward.input("tangents_1", torch.empty(4))
    other = sketch.backward.call(aten.exp.default, tangent, name="other")
    first = sketch.backward.call(aten.mul.Tensor, other, saved, name="first")
    second = sketch.backward.call(aten.add.Tensor, first, saved, name="second")
    graph = sketch.finish([out], [second])
    before = move_everything(graph)
    assert_expected_inline(
        describe(graph.backward.graph),
        """\
offload_a = input
tangents_1 = input
other = aten.exp.default(tangents_1)
prefetch_default = fxoffload.prefetch.default(offload_a)
wait_a = fxoffload.wait.default(offload_a, [4], [1], torch.float32, cpu)
first = aten.mul.Tensor(other, wait_a)
second = aten.add.Tensor(first, wait_a)
return (second,)""",
    )
    toys.assert_same_step(before, graph)


def test_text_of_a_gathered_window(trace: Tracer) -> None:
    graph = trace(toys.small_window, toys.make_input())
    before = move_everything(graph)
    assert_expected_inline(
        describe(graph.forward.graph),
        """\
primals_1 = input
primals_2 = input
mm = aten.mm.default(primals_1, primals_2)
slice_1 = aten.slice.Tensor(mm, 1, 0, 1)
clone_default = aten.clone.default(slice_1)
offload_slice_1 = fxoffload.offload.default(clone_default, store, slice_1, nvme, True, 0)
release_default = fxoffload.release.default(offload_slice_1, clone_default)
slice_2 = aten.slice.Tensor(mm, 1, 1, 2)
clone_default_1 = aten.clone.default(slice_2)
offload_slice_2 = fxoffload.offload.default(clone_default_1, store, slice_2, nvme, True, 0)
release_default_1 = fxoffload.release.default(offload_slice_2, clone_default_1)
mul = aten.mul.Tensor(slice_1, slice_2)
sum_1 = aten.sum.default(mul)
t = aten.t.default(primals_1)
return (sum_1, offload_slice_1, offload_slice_2, t)""",
    )
    toys.assert_same_step(before, graph)


def test_gathered_window_keeps_the_order_of_its_strides() -> None:
    """A kernel for a transposed matrix may differ from another one's in the last bits."""
    sketch = Sketch()
    a = sketch.begin(32, 8)
    window = sketch.forward.call(
        aten.t.default, sketch.forward.call(aten.slice.Tensor, a, 1, 0, 2), name="window"
    )
    out = sketch.forward.call(aten.cos.default, a)
    (saved,) = sketch.save(window)
    graph = sketch.finish([out], [sketch.backward.call(aten.exp.default, saved)])
    before = move_everything(graph)
    wait = toys.find_by_target(graph.backward.graph, WAIT)
    assert wait.args[1:3] == ([2, 32], [1, 2])
    toys.assert_same_step(before, graph)


def test_split_whose_items_were_all_saved_goes() -> None:
    """If the split stayed without its items, it would count as a reader after the release."""
    sketch = Sketch()
    a = sketch.begin(4, 6)
    out = sketch.forward.call(aten.cos.default, a)
    split = sketch.forward.call(aten.split.Tensor, a, 2)
    items = [sketch.forward.call(operator.getitem, split, index) for index in (0, 1)]
    saved = sketch.save(*items)
    graph = sketch.finish([out], [sketch.backward.call(aten.exp.default, p) for p in saved])
    before = move_everything(graph)
    assert names_of(graph.forward.graph) == [
        "sin_default",
        "offload_sin_default",
        "cos_default",
        "release_default",
    ]
    toys.assert_same_step(before, graph)


def test_placeholders_stay_at_the_top() -> None:
    sketch = Sketch()
    x, y = (sketch.forward.input(name, torch.empty(4, 4)) for name in "xy")
    out = sketch.forward.call(aten.mul.Tensor, x, y)
    saved = sketch.save(x)
    gradient = sketch.backward.call(aten.exp.default, *saved)
    graph = sketch.finish([out], [gradient, None])
    move_everything(graph)
    assert [node.op for node in graph.forward.graph.nodes][:2] == ["placeholder"] * 2
    ticket = toys.find_by_target(graph.forward.graph, OFFLOAD)
    assert ticket.args[4] is False  # not ours


# --- outputs and placeholders -------------------------------------------------------------------


def test_outputs_of_the_program_stay(zoo_graph: TrainingGraph) -> None:
    before = move_everything(zoo_graph)
    count = zoo_graph.num_outputs
    old, new = get_results(before.forward.graph), get_results(zoo_graph.forward.graph)
    assert [str(node) for node in new[:count]] == [str(node) for node in old[:count]]
    gradients = get_results(before.backward.graph), get_results(zoo_graph.backward.graph)
    assert len(gradients[0]) == len(gradients[1])


def test_descriptors_stay_with_their_results(zoo_graph: TrainingGraph) -> None:
    """Each result has one descriptor; AOTAutograd pairs them."""
    outputs = [
        next(iter(module.graph.find_nodes(op="output")))
        for module in (zoo_graph.forward, zoo_graph.backward)
    ]
    move_everything(zoo_graph)
    for output in outputs:
        assert len(output.meta["desc"]) == len(output.args[0])


def test_a_saved_value_that_is_an_output_keeps_its_place() -> None:
    """The same node as an output and as a saved value: the output stays an output."""
    sketch = Sketch()
    a = sketch.forward.call(aten.sin.default, sketch.forward.input("x", torch.empty(4)), name="a")
    b = sketch.forward.call(aten.cos.default, a, name="b")
    saved = sketch.save(a, b)
    gradients = [sketch.backward.call(aten.exp.default, node) for node in saved]
    graph = sketch.finish([a], gradients)
    before = move_everything(graph)
    assert [str(node) for node in get_results(graph.forward.graph)] == [
        "a",
        "offload_a",
        "offload_b",
    ]
    toys.assert_same_step(before, graph)


# --- values --------------------------------------------------------------------------------------


def test_what_may_not_move_changes_nothing(zoo_graph: TrainingGraph) -> None:
    values = [replace(value, refusal="no reason") for value in find_saved_values(zoo_graph)]
    graphs = (zoo_graph.forward.graph, zoo_graph.backward.graph)
    before = [(str(graph), [id(node) for node in graph.nodes]) for graph in graphs]
    insert_transfers(zoo_graph, values, store="store")
    assert [(str(graph), [id(node) for node in graph.nodes]) for graph in graphs] == before


def test_values_of_another_graph_are_refused() -> None:
    values = find_saved_values(toys.make_chain(3))
    with pytest.raises(PlanError, match=r"'layer2' cannot move: the graph saves no \['layer2'"):
        insert_transfers(toys.make_chain(2), values, store="store")


def test_values_cannot_be_inserted_twice() -> None:
    graph = toys.make_chain(2)
    values = find_saved_values(graph)
    insert_transfers(graph, values, store="store")
    with pytest.raises(PlanError, match="layer0"):
        insert_transfers(graph, values, store="store")


def test_tier_and_name_are_in_the_node() -> None:
    graph = toys.make_chain(1)
    values = find_saved_values(graph)
    insert_transfers(graph, values, store="key", tier="host")
    ticket = toys.find_by_target(graph.forward.graph, OFFLOAD)
    assert ticket.args[1:] == ("key", "layer0", "host", True, 0)


# --- execution ----------------------------------------------------------------------------------


def test_zoo_computes_the_same_bits(zoo_graph: TrainingGraph) -> None:
    before = move_everything(zoo_graph)
    toys.assert_same_step(before, zoo_graph)


def four_times(x: Tensor) -> Tensor:
    h = (x @ WEIGHT).tanh()
    return torch.cat([h, h, h, h]).sin().sum()


def one_more(x: Tensor) -> Tensor:
    h = x @ WEIGHT
    return (torch.cat([h, h[:1]]) @ WEIGHT).tanh().sum()


def flattened(x: Tensor) -> Tensor:
    h = (x @ WEIGHT).tanh()
    return (h.flatten() * h.t().flatten()).sum()


@pytest.mark.parametrize("function", [toys.deep, toys.qkv, four_times, one_more, flattened])
def test_symbolic_sizes(fresh_dynamo: None, function: Callable[[Tensor], Tensor]) -> None:
    """No size of the traced example is left in the graph: others work as well."""
    graph = toys.trace_dynamic(function)
    symbols = toys.find_symbols(graph)
    before = move_everything(graph)
    for rows in (8, 5, 24):
        toys.assert_same_step(before, graph, sizes=dict.fromkeys(symbols, rows))


@settings(deadline=None, max_examples=100)
@given(toys.random_graphs())
def test_random_graphs_compute_the_same_bits(graph: TrainingGraph) -> None:
    before = move_everything(graph)
    toys.assert_same_step(before, graph)


def test_wrong_readers_are_caught() -> None:
    """The toy store does what this file relies on: a wrong reader changes the result."""
    graph = toys.make_chain(1)
    before = move_everything(graph)
    prefetch = toys.find_by_target(graph.backward.graph, PREFETCH)
    prefetch.next.append(prefetch)
    with pytest.raises(AssertionError, match="waits before its prefetch"):
        toys.assert_same_step(before, graph)
    late = toys.copy_graph(before)
    move_everything(late)
    release = toys.find_by_target(late.forward.graph, RELEASE)
    release.prev.prepend(release)
    with pytest.raises(AssertionError, match="output 0 differs"):
        toys.assert_same_step(before, late)


def test_only_transfers_are_added(zoo_graph: TrainingGraph) -> None:
    before = move_everything(zoo_graph)
    added = {aten.clone.default, aten.as_strided.default, aten.view.dtype, *OPS}
    for old, new in ((before.forward, zoo_graph.forward), (before.backward, zoo_graph.backward)):
        names = {node.name for node in old.graph.nodes}
        extra = [n for n in new.graph.nodes if n.name not in names and n.op == "call_function"]
        assert all(n.target in added or n.target is operator.mul for n in extra)
