"""Scheduling: move releases and prefetches to where the link needs them. Moves nodes only.

    forward                                   after sink_releases
    t = offload(x, ...)                       t = offload(x, ...)
    b = op1(x)                                b = op1(x)
    release(t, x, True)                       c = op2(b)     # hides the write
    c = op2(b)                                release(t, x, True)
    d = op3(c)                                d = op3(c)

    backward                                  after advance_prefetches
    e = op4(tangents)                         prefetch(t)
    prefetch(t)                               e = op4(tangents)   # hides the read
    y = wait(t, ...)                          y = wait(t, ...)
    f = op5(y, e)                             f = op5(y, e)

Both walk the graph with a clock (seconds of each node from the cost model) and one queue for the
link: transfers occupy it one after the other. Seconds are estimates, so each transfer is given
MARGIN times its own. When they are too low, the store waits: later, never wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from fxoffload.cost import CostModel
from fxoffload.graph import TrainingGraph, count_bytes, get_output, get_tensor
from fxoffload.ops import OFFLOAD, PREFETCH, RELEASE, WAIT

MARGIN = 2.0


def sink_releases(graph: TrainingGraph, *, cost: CostModel) -> None:
    """Move each release down to where its write should be done.

    A release for which the forward is too short goes to the end and does not block: no later
    node can overwrite the value, so the store lets go of it when the write is done.
    """
    forward = graph.forward.graph
    clock = queue_free = 0.0
    due: dict[fx.Node, float] = {}
    pending: list[fx.Node] = []
    for node in list(forward.nodes):
        if node.op == "output":
            break
        for release in [item for item in pending if due[_ticket(item)] <= clock]:
            pending.remove(release)
            node.prepend(release)
        if node.target is OFFLOAD:
            base, tier = node.args[0], node.args[3]
            assert isinstance(base, fx.Node)
            assert isinstance(tier, str)
            link = cost.links[tier]
            queue_free = max(clock, queue_free) + MARGIN * link.write_seconds(_bytes(base))
            due[node] = queue_free + MARGIN * link.latency_seconds
        elif node.target is RELEASE:
            pending.append(node)
        clock += cost.node_seconds(node)
    output = get_output(forward)
    for release in pending:
        output.prepend(release)
        release.update_arg(2, False)


def advance_prefetches(graph: TrainingGraph, *, cost: CostModel, max_inflight_bytes: int) -> None:
    """Move each prefetch up to the latest place from which its read is still done in time.

    Reads are queued in the order of their waits, so a late one pushes the earlier ones up.
    Never more than `max_inflight_bytes` are between their prefetch and their wait.
    """
    backward = graph.backward.graph
    nodes = [
        node
        for node in backward.nodes
        if node.op == "call_function" and node.target is not PREFETCH
    ]
    starts = _start_seconds(nodes, cost.node_seconds)
    waits = [node for node in nodes if node.target is WAIT]
    tiers = _tiers(graph.forward.graph)
    prefetches = {
        node.args[0]: node for node in backward.find_nodes(op="call_function", target=PREFETCH)
    }
    places: list[fx.Node] = []
    queue_free = float("inf")
    for wait in reversed(waits):
        link = cost.links[tiers[_ticket(wait).name]]
        needed = starts[wait] - MARGIN * link.latency_seconds
        queue_free = min(needed, queue_free) - MARGIN * link.read_seconds(_bytes(wait))
        early = (node for node in reversed(nodes) if starts[node] <= queue_free and node < wait)
        places.append(next(early, nodes[0]))
    places.reverse()
    for wait, place in zip(
        waits, limit_inflight(places, waits, nodes, max_inflight_bytes), strict=True
    ):
        place.prepend(prefetches[_ticket(wait)])


def limit_inflight(
    places: list[fx.Node], waits: list[fx.Node], nodes: list[fx.Node], max_inflight_bytes: int
) -> list[fx.Node]:
    """Places postponed, in the order of their waits, until the bytes in flight are in bounds."""
    position = {node: index for index, node in enumerate(nodes)}
    limited: list[fx.Node] = []
    for index, (wait, place) in enumerate(zip(waits, places, strict=True)):
        inflight = _bytes(wait)
        earliest = position[place]
        # Earlier waits, latest first: those that end after `place` overlap this read.
        for other in reversed(waits[:index]):
            if position[other] < earliest:
                break
            inflight += _bytes(other)
            if inflight > max_inflight_bytes:
                earliest = position[other] + 1
                break
        limited.append(nodes[min(earliest, position[wait])])
    return limited


def _start_seconds(
    nodes: list[fx.Node], node_seconds: Callable[[fx.Node], float]
) -> dict[fx.Node, float]:
    clock = 0.0
    starts: dict[fx.Node, float] = {}
    for node in nodes:
        starts[node] = clock
        clock += node_seconds(node)
    return starts


def _tiers(forward: fx.Graph) -> dict[str, str]:
    return {node.name: str(node.args[3]) for node in forward.nodes if node.target is OFFLOAD}


def _ticket(node: fx.Node) -> fx.Node:
    """The ticket that a release, a prefetch or a wait is about."""
    ticket = node.args[0]
    assert isinstance(ticket, fx.Node)
    return ticket


def _bytes(node: fx.Node) -> int:
    tensor = get_tensor(node)
    assert isinstance(tensor, torch.Tensor)
    return count_bytes(tensor)
