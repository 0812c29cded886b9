"""Diffs of graphs: what they show, of one pass and of all, and their colours."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console
from torch import Tensor
from torch.nn import functional
from toys import HARDWARE, WEIGHT, Sketch, aten, linear_relu, make_input

import fxoffload
from fxoffload.errors import GraphError
from fxoffload.graph import TrainingGraph
from fxoffload.inspection.graph_diff import GraphDiff, Move, diff_graphs, diff_pass
from fxoffload.ops import RELEASE
from fxoffload.passes import find_saved_values, hoist_saved, insert_transfers

OPTIONS = {
    "compiler": "eager", "memory_budget": "min", "min_bytes": 1, "ioengine": "memory",
    "hardware": HARDWARE,
}  # fmt: skip


def insert(graph: TrainingGraph) -> None:
    insert_transfers(graph, values=find_saved_values(graph), store="")


def test_a_pass_shows_what_it_adds(trace: Callable[..., TrainingGraph]) -> None:
    graph = trace(linear_relu, make_input())
    lines = diff_pass(graph, insert).lines
    added = [line for line in lines if line.startswith("+ ")]
    kinds = ("offload", "release", "prefetch", "wait")
    assert [any(f"fxoffload.{kind}." in line for line in added) for kind in kinds] == [True] * 4
    assert [line for line in lines if line.startswith(("---", "+++"))] == [
        "--- forward, before", "+++ forward, after", "--- backward, before", "+++ backward, after",
    ]  # fmt: skip
    assert not any(line.endswith("= None") for line in lines)
    assert diff_pass(graph, lambda graph: None).moves == ()


def test_a_moved_node_is_shown_with_both_its_places() -> None:
    sketch = Sketch()
    relu = sketch.forward.call(aten.relu.default, sketch.forward.input("x", make_input()), name="y")
    out = sketch.forward.call(aten.sin.default, relu, name="out")
    sketch.save(sketch.forward.call(aten.le.Scalar, relu, 0, name="late"))
    tangent = sketch.backward.input("tangents_1", make_input())
    graph = sketch.finish([out], [sketch.backward.call(aten.sin.default, tangent)])
    diff = diff_pass(graph, hoist_saved)
    assert diff.moves == (Move("forward", "late", "out", "y"),)
    assert str(diff).splitlines()[:2] == [
        "forward: late is moved from behind out to behind y", "--- forward, before",
    ]  # fmt: skip
    assert str(Move("forward", "x", "", "y")) == "forward: x is moved from the start to behind y"


def test_a_pass_that_changes_nothing(trace: Callable[..., TrainingGraph]) -> None:
    diff = diff_pass(trace(linear_relu, make_input()), lambda graph: None)
    assert diff == GraphDiff(())
    assert str(diff) == "nothing is changed"


def test_an_illegal_result_is_refused(trace: Callable[..., TrainingGraph]) -> None:
    graph = trace(linear_relu, make_input())
    diff_pass(graph, insert)

    def forget(graph: TrainingGraph) -> None:
        (node,) = graph.forward.graph.find_nodes(op="call_function", target=RELEASE)
        graph.forward.graph.erase_node(node)

    with pytest.raises(GraphError, match="after forget"):
        diff_pass(graph, forget)


@pytest.mark.usefixtures("fresh_dynamo")
def test_an_explained_graph_shows_what_was_hoisted() -> None:
    """What only the backward reads: statistics of a layer norm, and the derivative of a sine."""

    def run(x: Tensor) -> Tensor:
        return functional.layer_norm(x @ WEIGHT, [16]).sin().sum()

    (graph,) = fxoffload.explain(run, make_input(), options=OPTIONS).graphs
    assert graph.diff().moves == (
        Move("forward", "getitem_2", "getitem_1", "native_layer_norm"),
        Move("forward", "getitem_1", "getitem", "getitem_2"),
        Move("forward", "cos", "sum_1", "getitem"),
    )


@pytest.mark.usefixtures("fresh_dynamo")
def test_an_explained_graph_has_the_diff_of_all_passes() -> None:
    x = make_input().requires_grad_()
    (graph,) = fxoffload.explain(linear_relu, x, options=OPTIONS).graphs
    text = str(graph.diff())
    assert "+    wait_relu = torch.ops.fxoffload.wait.default" in text
    before = graph.forward_before, graph.backward_before
    assert str(diff_graphs(before, before)) == "nothing is changed"


def test_rich_prints_it_in_colours() -> None:
    diff = GraphDiff(("--- a", "+++ b", "@@ -1 +1 @@", "-x = torch[0]", "+y", " z"))
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="standard").print(diff)
    red, green, cyan, plain = "\x1b[31m", "\x1b[32m", "\x1b[36m", "\x1b[0m"
    for styled in (f"{red}-x = torch[0]{plain}", f"{green}+y{plain}", f"{cyan}@@ -1 +1 @@{plain}"):
        assert styled in out.getvalue()
    assert "\n z\n" in out.getvalue()
