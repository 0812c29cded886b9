"""Where the inserted ops stand among the nodes of a graph."""

from __future__ import annotations

import toys
from torch import fx
from toys import aten

from fxoffload.ops import PREFETCH
from fxoffload.passes.insertion import insert_transfers
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.op_positions import _find_positions, find_op_positions, list_nodes


def test_positions_count_the_nodes_of_before() -> None:
    graph = toys.make_chain(3)
    forward, backward = list_nodes(graph.forward.graph), list_nodes(graph.backward.graph)
    values = find_saved_values(graph, min_bytes=1)
    insert_transfers(graph, values, store="")
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


def test_a_view_that_insertion_moved_changes_no_position() -> None:
    """Such a view sinks down to its reader."""
    graph = fx.Graph()
    ticket, x = graph.placeholder("offload_x"), graph.placeholder("x")
    view = graph.call_function(aten.t.default, (x,))
    early = graph.call_function(aten.relu.default, (x,))
    late = graph.call_function(aten.relu.default, (view,))
    graph.output((early, late))
    before = list_nodes(graph)
    late.prepend(view)
    with graph.inserting_before(late):
        prefetch = graph.call_function(PREFETCH, (ticket,))
    placed = _find_positions(graph, before, {prefetch: ("prefetch", "x")})
    assert placed == [(("prefetch", "x"), before.index(late.name))]


def test_no_ops_no_positions() -> None:
    graph = toys.make_chain(2)
    forward, backward = list_nodes(graph.forward.graph), list_nodes(graph.backward.graph)
    assert find_op_positions(graph, forward, backward) == ([], [])
