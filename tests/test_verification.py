"""verify_transfers: for each rule, one test that a graph which breaks it raises GraphError."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import toys
from torch import fx
from toys import aten, find_by_target

from fxoffload.errors import GraphError
from fxoffload.graph import TrainingGraph, get_output
from fxoffload.ops import OFFLOAD, PREFETCH, RELEASE, WAIT
from fxoffload.passes.insertion import insert_transfers
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.verification import verify_transfers


@pytest.fixture
def graph() -> TrainingGraph:
    """One layer, moved: layer0, offload, out, release | prefetch, wait, grad0."""
    graph = toys.make_chain(1)
    insert_transfers(graph, find_saved_values(graph), store="store")
    verify_transfers(graph)
    return graph


def find(graph: TrainingGraph, name: str) -> fx.Node:
    for module in (graph.forward, graph.backward):
        for node in module.graph.nodes:
            if node.name == name:
                return node
    raise KeyError(name)


def add(
    graph: TrainingGraph, after: str, target: Any, *args: Any, name: str = "intruder"
) -> fx.Node:
    node = find(graph, after)
    with node.graph.inserting_after(node):
        new = node.graph.create_node("call_function", target, args, name=name)
    values = fx.map_arg(args, lambda n: n.meta["val"])
    with find(graph, "layer0").meta["val"].fake_mode:
        new.meta["val"] = target(*values)
    return new


def check_refused(graph: TrainingGraph, words: str) -> None:
    with pytest.raises(GraphError, match=words):
        verify_transfers(graph)


def test_legal_graphs_pass(zoo_graph: TrainingGraph) -> None:
    verify_transfers(zoo_graph)
    insert_transfers(zoo_graph, find_saved_values(zoo_graph), store="store")
    verify_transfers(zoo_graph)


# --- 1: every ticket is a result, and is released exactly once ----------------------------------


def test_rule_1_ticket_that_is_not_saved(graph: TrainingGraph) -> None:
    output = get_output(graph.forward.graph)
    output.args = ((output.args[0][0],),)  # pyright: ignore
    check_refused(graph, "ticket offload_layer0 is not saved")


def test_rule_1_ticket_that_is_an_output_of_the_program(graph: TrainingGraph) -> None:
    graph.num_outputs = 2
    check_refused(graph, "ticket offload_layer0 is not saved")


def test_rule_1_no_release(graph: TrainingGraph) -> None:
    graph.forward.graph.erase_node(find_by_target(graph.forward.graph, RELEASE))
    check_refused(graph, "ticket offload_layer0 is released 0 times, not once")


def test_rule_1_two_releases(graph: TrainingGraph) -> None:
    ticket, base = find(graph, "offload_layer0"), find(graph, "layer0")
    add(graph, "release_default", RELEASE, ticket, base)
    check_refused(graph, "ticket offload_layer0 is released 2 times, not once")


def test_rule_1_release_of_another_value(graph: TrainingGraph) -> None:
    find_by_target(graph.forward.graph, RELEASE).update_arg(1, find(graph, "out"))
    check_refused(graph, "release_default names out, not what offload_layer0")


# --- 2: no reader of a released value after its release -----------------------------------------


def test_rule_2_reader_after_release(graph: TrainingGraph) -> None:
    add(graph, "release_default", aten.exp.default, find(graph, "layer0"))
    check_refused(graph, "intruder reads layer0 after release_default")


def test_rule_2_reader_through_views_after_release(graph: TrainingGraph) -> None:
    view = add(graph, "layer0", aten.t.default, find(graph, "layer0"), name="view")
    again = add(graph, "release_default", aten.t.default, view, name="again")
    verify_transfers(graph)  # a view reads nothing
    add(graph, "again", aten.exp.default, again)
    check_refused(graph, "intruder reads layer0 after release_default")


# --- 3: nothing writes to a value between its offload and its release ---------------------------


@pytest.mark.parametrize("through_view", [False, True])
def test_rule_4_write_before_release(graph: TrainingGraph, through_view: bool) -> None:
    target = find(graph, "layer0")
    if through_view:
        target = add(graph, "layer0", aten.t.default, target, name="view")
    add(graph, "out", aten.add_.Scalar, target, 1)
    with pytest.raises(
        GraphError, match="intruder writes to layer0 between offload_layer0 and release_default"
    ):
        verify_transfers(graph)


def test_rule_4_write_before_offload_is_legal(graph: TrainingGraph) -> None:
    add(graph, "layer0", aten.add_.Scalar, find(graph, "layer0"), 1)
    verify_transfers(graph)


# --- 4: a placeholder of the same name, with one prefetch and one wait as its only users --------


def test_rule_5_no_placeholder(graph: TrainingGraph) -> None:
    (placeholder, _) = graph.backward.graph.find_nodes(op="placeholder")
    placeholder.name = "something_else"
    check_refused(graph, "no placeholder for ticket offload_layer0")


def test_rule_5_no_prefetch(graph: TrainingGraph) -> None:
    graph.backward.graph.erase_node(find_by_target(graph.backward.graph, PREFETCH))
    check_refused(graph, "ticket offload_layer0 has 0 prefetches and 1 waits")


def test_rule_5_no_wait(graph: TrainingGraph) -> None:
    wait = find_by_target(graph.backward.graph, WAIT)
    wait.replace_all_uses_with(find(graph, "tangents_1"))
    graph.backward.graph.erase_node(wait)
    check_refused(graph, "ticket offload_layer0 has 1 prefetches and 0 waits")


@pytest.mark.parametrize(("target", "counts"), [(PREFETCH, (2, 1)), (WAIT, (1, 2))])
def test_rule_5_twice(graph: TrainingGraph, target: Any, counts: tuple[int, int]) -> None:
    node = find_by_target(graph.backward.graph, target)
    add(graph, node.name, target, *node.args)
    words = f"offload_layer0 has {counts[0]} prefetches and {counts[1]} waits"
    check_refused(graph, words)


def test_rule_5_other_use_of_the_ticket(graph: TrainingGraph) -> None:
    (ticket, _) = graph.backward.graph.find_nodes(op="placeholder")
    add(graph, "grad0", aten.clone.default, ticket)
    check_refused(graph, r"ticket offload_layer0 .* among 3 users")


@pytest.mark.parametrize("target", [PREFETCH, WAIT])
def test_rule_5_transfer_without_offload(graph: TrainingGraph, target: Any) -> None:
    """A decision that was dropped in the forward must be dropped in the backward."""
    node = find_by_target(graph.backward.graph, target)
    tangent = find(graph, "tangents_1")
    add(graph, node.name, target, tangent, *node.args[1:])
    check_refused(graph, "intruder names a value that was not offloaded")


# --- 5: the prefetch stands before the wait -----------------------------------------------------


def test_rule_6_wait_before_prefetch(graph: TrainingGraph) -> None:
    wait = find_by_target(graph.backward.graph, WAIT)
    wait.append(find_by_target(graph.backward.graph, PREFETCH))
    check_refused(graph, "wait_layer0 stands before prefetch_default")


# --- 6: size, stride, dtype and device are restored ---------------------------------------------


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (1, [16, 15]),
        (2, [1, 16]),
        (3, torch.float16),
        (4, torch.device("meta")),
    ],
)
def test_rule_7_other_argument(graph: TrainingGraph, index: int, value: Any) -> None:
    find_by_target(graph.backward.graph, WAIT).update_arg(index, value)
    check_refused(graph, r"wait_layer0 asks for .*, but layer0 is")


def test_rule_7_other_result(graph: TrainingGraph) -> None:
    wait = find_by_target(graph.backward.graph, WAIT)
    wait.meta["val"] = wait.meta["val"].t()
    check_refused(graph, r"wait_layer0 restores .*, but layer0 is")


# --- 7: fx's own lint ---------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "name"), [("forward", "layer0"), ("backward", "wait_layer0")])
def test_rule_8_argument_after_its_user(graph: TrainingGraph, part: str, name: str) -> None:
    node = find(graph, name)
    get_output(node.graph).prepend(node)
    check_refused(graph, rf"{part}: .*'{name}'")


def test_verification_changes_nothing(graph: TrainingGraph) -> None:
    before = toys.describe(graph.forward.graph), toys.describe(graph.backward.graph)
    verify_transfers(graph)
    assert (toys.describe(graph.forward.graph), toys.describe(graph.backward.graph)) == before
    assert len(graph.forward.graph.find_nodes(op="call_function", target=OFFLOAD)) == 1
