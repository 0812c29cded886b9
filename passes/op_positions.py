"""Op positions: for each inserted op, the index of the next node that the graph had before.

before            after insert_transfers            positions
relu = ...        relu = ...
sum  = ...        t = offload(relu, "relu", ...)    offload relu: 1
output            sum  = ...
                  release(t, relu)                  release relu: 2
                  output
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from fxoffload.graph import TrainingGraph
from fxoffload.ops import OFFLOAD, OPS, PREFETCH, RELEASE, WAIT, OpEvent

_KINDS = {OFFLOAD: "offload", RELEASE: "release", PREFETCH: "prefetch", WAIT: "wait"}

PlacedOps = list[tuple[OpEvent, int]]


def list_nodes(graph: fx.Graph) -> list[str]:
    """Names of all nodes, in order."""
    return [node.name for node in graph.nodes]


def find_op_positions(
    graph: TrainingGraph, forward_before: Sequence[str], backward_before: Sequence[str]
) -> tuple[PlacedOps, PlacedOps]:
    """The inserted ops of the forward and of the backward, in order, each with its position.

    The position is the index of the next node among those that list_nodes found before insertion.
    """
    ops = {n: event for event, n in find_ops(graph.forward.graph, graph.backward.graph).items()}
    return (
        _find_positions(graph.forward.graph, forward_before, ops),
        _find_positions(graph.backward.graph, backward_before, ops),
    )


def find_ops(forward: fx.Graph, backward: fx.Graph) -> dict[OpEvent, fx.Node]:
    """The nodes of the four ops, by kind and name of value, in the order of the graphs."""
    names = {
        node.name: str(node.args[2])
        for node in forward.find_nodes(op="call_function", target=OFFLOAD)
    }
    found: dict[OpEvent, fx.Node] = {}
    for node in (*forward.nodes, *backward.nodes):
        if node.op == "call_function" and node.target in OPS:
            ticket = node if node.target is OFFLOAD else node.args[0]
            assert isinstance(ticket, fx.Node)
            kind = _KINDS[node.target]  # pyright: ignore[reportArgumentType]
            found[kind, names[ticket.name]] = node
    return found


def _find_positions(
    graph: fx.Graph, before: Sequence[str], ops: Mapping[fx.Node, OpEvent]
) -> PlacedOps:
    index = {name: position for position, name in enumerate(before)}
    position = 0
    found: PlacedOps = []
    for node in graph.nodes:
        # Insertion moves views to later nodes; the maximum ignores them.
        position = max(position, index.get(node.name, -1) + 1)
        if node in ops:
            found.append((ops[node], position))
    return found
