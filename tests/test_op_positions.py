"""Where the inserted ops stand among the nodes of a graph."""

from __future__ import annotations

from typing import Any

import pytest
import toys

from fxoffload.passes.insertion import insert_transfers
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.op_positions import find_op_positions, list_nodes


def test_positions_count_the_nodes_of_before() -> None:
    graph = toys.make_chain(3)
    forward, backward = list_nodes(graph.forward.graph), list_nodes(graph.backward.graph)
    values = find_saved_values(graph, min_bytes=1)
    insert_transfers(graph, toys.plan_all(values), store="", blocks=False)
    placed = find_op_positions(graph, forward, backward)
    movable = [value for value in values if value.refusal is None]
    assert movable
    for ops, kinds in zip(placed, (("offload", "release"), ("prefetch", "wait")), strict=True):
        assert {event for event, _ in ops} == {
            (kind, value.name) for kind in kinds for value in movable
        }
        positions = [position for _, position in ops]
        assert positions == sorted(positions)
    by_event = dict(placed[0]) | dict(placed[1])
    for value in movable:
        assert value.born < by_event["offload", value.name] <= by_event["release", value.name]
        assert by_event["release", value.name] >= value.last_use + 1
        assert by_event["prefetch", value.name] == by_event["wait", value.name] == value.first_use


@pytest.mark.parametrize(
    "function", [toys.qkv, toys.splits, toys.overlapping, toys.deep], ids=lambda f: f.__name__
)
def test_nodes_that_insertion_moves_do_not_disturb_the_order(function: Any) -> None:
    """Views of what is restored sink down to their readers."""
    graph = toys.trace(function, toys.make_input())
    forward, backward = list_nodes(graph.forward.graph), list_nodes(graph.backward.graph)
    values = find_saved_values(graph, min_bytes=1)
    insert_transfers(graph, toys.plan_all(values), store="", blocks=False)
    for placed in find_op_positions(graph, forward, backward):
        positions = [position for _, position in placed]
        assert positions
        assert positions == sorted(positions)


def test_no_ops_no_positions() -> None:
    graph = toys.make_chain(2)
    forward, backward = list_nodes(graph.forward.graph), list_nodes(graph.backward.graph)
    assert find_op_positions(graph, forward, backward) == ([], [])
