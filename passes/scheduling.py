"""Scheduling: move releases and prefetches to the places that the plan names.

    forward                                   after schedule_transfers
    t = offload(x, ...)                       t = offload(x, ...)
    b = op1(x)                                b = op1(x)
    release(t, x, True)                       c = op2(b)     # hides the write
    c = op2(b)                                release(t, x, True)
    d = op3(c)                                d = op3(c)

    backward                                  after schedule_transfers
    e = op4(tangents)                         prefetch(t)
    prefetch(t)                               e = op4(tangents)   # hides the read
    y = wait(t, ...)                          y = wait(t, ...)
    f = op5(y, e)                             f = op5(y, e)

A release before the output need not block: no later node of the forward can overwrite the
value, so the store keeps it until the write has ended, and drops it then.
"""

from __future__ import annotations

from torch import fx

from fxoffload.errors import PlanError
from fxoffload.graph import TrainingGraph
from fxoffload.ops import OFFLOAD, PREFETCH, RELEASE, WAIT
from fxoffload.planner.plan import Plan


def schedule_transfers(graph: TrainingGraph, plan: Plan) -> None:
    """Move each release and prefetch to the place before the node that `plan` names.

    Raises PlanError when the plan names a node that is not there.
    """
    decisions = {value.name: decision for value, decision in plan.offloads}
    forward, backward = graph.forward.graph, graph.backward.graph
    nodes = {node.name: node for node in forward.nodes}
    names: dict[str, str] = {}
    for offload in forward.find_nodes(op="call_function", target=OFFLOAD):
        names[offload.name] = str(offload.args[2])
    for release in list(forward.find_nodes(op="call_function", target=RELEASE)):
        decision = decisions[names[_find_ticket(release).name]]
        place = _find_node(nodes, decision.released_before) if decision.released_before else None
        if place is not None and release < place:
            place.prepend(release)
        release.update_arg(2, decision.blocks)
    nodes = {node.name: node for node in backward.nodes}
    found = backward.find_nodes(op="call_function", target=PREFETCH)
    prefetches = {_find_ticket(node): node for node in found}
    # In the order of the waits: several prefetches before one node then queue in order of use.
    for wait in list(backward.find_nodes(op="call_function", target=WAIT, sort=True)):
        before = decisions[names[_find_ticket(wait).name]].prefetched_before
        if before and (place := _find_node(nodes, before)) < wait:
            place.prepend(prefetches[_find_ticket(wait)])


def _find_ticket(node: fx.Node) -> fx.Node:
    """The ticket that a release, a prefetch or a wait takes."""
    ticket = node.args[0]
    assert isinstance(ticket, fx.Node)
    return ticket


def _find_node(nodes: dict[str, fx.Node], name: str) -> fx.Node:
    node = nodes.get(name)
    if node is None:
        raise PlanError(f"the plan puts a transfer in front of {name!r}, which the graph lacks")
    return node
