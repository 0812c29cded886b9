"""Hoisting: a node whose result is no larger than its operands moves up to them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import toys
from hypothesis import given, settings
from torch import fx
from toys import Sketch, aten, names_of

from fxoffload.graph import TrainingGraph, get_tensor, is_view
from fxoffload.passes.hoisting import find_order, hoist_reductions, hoist_saved, restore_order


def begin() -> tuple[Sketch, fx.Node]:
    """A graph with a relu of its input."""
    sketch = Sketch()
    x = sketch.forward.input("x", toys.make_input())
    return sketch, sketch.forward.call(aten.relu.default, x, name="relu")


def finish(sketch: Sketch, *outputs: fx.Node) -> TrainingGraph:
    """Finish with a backward that reads no saved value."""
    tangent = sketch.backward.input("tangents_1", toys.make_input())
    return sketch.finish(outputs, [sketch.backward.call(aten.sin.default, tangent)])


def make_late(target: object, *args: object, returned: bool = False) -> TrainingGraph:
    """relu, two layers, and at the end `late`: `target` of relu, which is saved."""
    sketch, relu = begin()
    sin = sketch.forward.call(aten.sin.default, relu, name="sin")
    out = sketch.forward.call(aten.cos.default, sin, name="out")
    late = sketch.forward.call(target, relu, *args, name="late")
    sketch.save(late)
    return finish(sketch, out, late) if returned else finish(sketch, out)


def hoist(graph: TrainingGraph) -> list[str]:
    before = toys.copy_graph(graph)
    hoist_saved(graph)
    toys.assert_same_step(before, graph)
    assert sorted(names_of(graph.forward.graph)) == sorted(names_of(before.forward.graph))
    assert names_of(graph.backward.graph) == names_of(before.backward.graph)
    return names_of(graph.forward.graph)


def test_before_and_after() -> None:
    assert hoist(make_late(aten.le.Scalar, 0)) == ["relu", "late", "sin", "out"]


def test_view_of_an_activation_moves() -> None:
    assert hoist(make_late(aten.t.default)) == ["relu", "late", "sin", "out"]


def test_what_the_program_returns_stays() -> None:
    graph = make_late(aten.le.Scalar, 0, returned=True)
    assert hoist(graph) == ["relu", "sin", "out", "late"]


def test_result_larger_than_its_operands_stays() -> None:
    assert hoist(make_late(aten.repeat.default, [2, 1])) == ["relu", "sin", "out", "late"]


def test_collectives_stay_in_their_order() -> None:
    """Ranks hoist or not, each by its own plan; all of them must run collectives in one order."""
    graph = make_late(torch.ops._c10d_functional.wait_tensor.default)
    hoist_saved(graph)
    assert names_of(graph.forward.graph) == ["relu", "sin", "out", "late"]


def test_random_numbers_stay_in_their_order() -> None:
    graph = make_late(aten.bernoulli.p, 0.5)
    hoist_saved(graph)
    assert names_of(graph.forward.graph) == ["relu", "sin", "out", "late"]


def test_what_reads_inputs_alone_stays() -> None:
    """Inputs live to the end anyway; an earlier result would only take memory longer."""
    sketch = Sketch()
    x = sketch.forward.input("x", toys.make_input())
    out = sketch.forward.call(aten.relu.default, x, name="out")
    sketch.save(sketch.forward.call(aten.le.Scalar, x, 0, name="late"))
    assert hoist(finish(sketch, out)) == ["out", "late"]


def test_chain_of_saved_nodes_moves_together() -> None:
    sketch, relu = begin()
    out = sketch.forward.call(aten.cos.default, relu, name="out")
    first = sketch.forward.call(aten.t.default, relu, name="first")
    second = sketch.forward.call(aten.sin.default, first, name="second")
    other = sketch.forward.call(aten.le.Scalar, relu, 0, name="other")
    sketch.save(second, other)
    names = hoist(finish(sketch, out))
    assert names[0] == "relu"
    assert names[-1] == "out"
    assert names.index("first") < names.index("second")


def test_node_that_the_forward_reads_stays() -> None:
    sketch, relu = begin()
    sin = sketch.forward.call(aten.sin.default, relu, name="sin")
    late = sketch.forward.call(aten.cos.default, relu, name="late")
    out = sketch.forward.call(aten.mul.Tensor, sin, late, name="out")
    sketch.save(late)
    assert hoist(finish(sketch, out)) == ["relu", "sin", "late", "out"]


def test_zoo_computes_the_same_bits(zoo_graph: TrainingGraph) -> None:
    once = hoist(zoo_graph)
    assert hoist(zoo_graph) == once, "a second time changes nothing"


def test_no_view_outlasts_its_base_in_the_zoo(zoo_graph: TrainingGraph) -> None:
    """Saved views stand behind their operands, not at the end of the forward."""
    hoist_saved(zoo_graph)
    nodes = list(zoo_graph.forward.graph.nodes)
    for node in nodes:
        users = {user.op for user in node.users}
        operands = [operand for operand in node.all_input_nodes if operand.op == "call_function"]
        if is_view(node) and users == {"output"} and operands and get_tensor(node) is not None:
            between = nodes[nodes.index(max(node.all_input_nodes)) + 1 : nodes.index(node)]
            assert all(_serves_the_backward(item) for item in between)


def _serves_the_backward(node: fx.Node) -> bool:
    return all(user.op == "output" or _serves_the_backward(user) for user in node.users)


@settings(deadline=None, max_examples=100)
@given(toys.random_graphs())
def test_random_graphs_compute_the_same_bits(graph: TrainingGraph) -> None:
    hoist(graph)


def test_graph_with_nothing_to_move_is_untouched() -> None:
    graph = toys.make_chain(3)
    before = toys.describe(graph.forward.graph)
    hoist_saved(graph)
    assert toys.describe(graph.forward.graph) == before


def make_summed(*, dims: Sequence[int] = (0,), reads: str = "grad") -> TrainingGraph:
    """In the backward: a product of `grad`, and then `total`, a sum of what is called `reads`."""
    sketch = Sketch()
    x = sketch.forward.input("x", toys.make_input())
    out = sketch.forward.call(aten.sin.default, x, name="out")
    saved = sketch.save(sketch.forward.call(aten.cos.default, x, name="cos"))[0]
    tangent = sketch.backward.input("tangents_1", toys.make_input())
    grad = sketch.backward.call(aten.mul.Tensor, tangent, saved, name="grad")
    product = sketch.backward.call(aten.t.default, grad, name="view")
    product = sketch.backward.call(aten.mm.default, grad, product, name="product")
    nodes = {"grad": grad, "product": product, "tangents_1": tangent}
    total = sketch.backward.call(aten.sum.dim_IntList, nodes[reads], list(dims), name="total")
    return sketch.finish([out], [product, total])


def sum_early(graph: TrainingGraph) -> list[str]:
    before = toys.copy_graph(graph)
    hoist_reductions(graph)
    toys.assert_same_step(before, graph)
    assert names_of(graph.forward.graph) == names_of(before.forward.graph)
    assert sorted(names_of(graph.backward.graph)) == sorted(names_of(before.backward.graph))
    return names_of(graph.backward.graph)


def test_sum_moves_in_front_of_products() -> None:
    assert sum_early(make_summed()) == ["grad", "total", "view", "product"]


@pytest.mark.parametrize("reads", ["product", "tangents_1"])
def test_sum_of_what_comes_late_or_was_there_stays(reads: str) -> None:
    assert sum_early(make_summed(reads=reads)) == ["grad", "view", "product", "total"]


def test_only_reductions_move_in_the_backward() -> None:
    graph = make_summed()
    (total,) = (node for node in graph.backward.graph.nodes if node.name == "total")
    total.target, total.args = aten.neg.default, total.args[:1]
    total.meta["val"] = total.args[0].meta["val"]
    assert sum_early(graph) == ["grad", "view", "product", "total"]


@settings(deadline=None, max_examples=100)
@given(toys.random_graphs())
def test_sums_of_random_graphs_are_the_same_bits(graph: TrainingGraph) -> None:
    sum_early(graph)


def test_sums_of_the_zoo_are_the_same_bits(zoo_graph: TrainingGraph) -> None:
    once = sum_early(zoo_graph)
    assert sum_early(zoo_graph) == once, "a second time changes nothing"


@settings(deadline=None, max_examples=100)
@given(toys.random_graphs())
def test_an_order_is_restored(graph: TrainingGraph) -> None:
    before, order = toys.copy_graph(graph), find_order(graph)
    hoist_saved(graph)
    hoist_reductions(graph)
    restore_order(graph, order)
    assert find_order(graph) == order
    toys.assert_same_step(before, graph)
