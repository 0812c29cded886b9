"""The pipeline: analyse, choose, then rewrite step by step, verifying after each.

    find_saved_values -> choose_offloads -> insert_transfers -> sink_releases -> advance_prefetches

`transform_graph` is the one place where passes are put in order; the passes do not know each
other.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import fx

from fxoffload.cost import CostModel
from fxoffload.errors import GraphError
from fxoffload.graph import TrainingGraph, count_bytes, get_results, get_tensor, has_hints
from fxoffload.passes.insertion import insert_transfers
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.scheduling import advance_prefetches, sink_releases
from fxoffload.passes.selection import Timeline, choose_offloads
from fxoffload.passes.verification import verify_transfers
from fxoffload.plan import Plan

log = logging.getLogger(__name__)

RewritePass = Callable[[TrainingGraph], None]


@dataclass(frozen=True, slots=True)
class PassOptions:
    """What the passes need to know beside the graph.

    budget_bytes, host_bytes: see choose_offloads. min_bytes: see find_saved_values.
    max_inflight_bytes: see advance_prefetches. store: the key that offload nodes carry.
    """

    cost: CostModel
    store: str
    budget_bytes: int | Literal["min"] | None = None
    host_bytes: int = 0
    min_bytes: int = 2**20
    max_inflight_bytes: int = 2**30


def transform_graph(graph: TrainingGraph, options: PassOptions) -> Plan:
    """Plan and rewrite `graph` in place; returns the plan. An empty plan leaves it untouched."""
    values = find_saved_values(graph, min_bytes=options.min_bytes)
    plan = choose_offloads(
        values,
        build_timeline(graph, options.cost),
        options.cost.links,
        budget_bytes=options.budget_bytes,
        host_bytes=options.host_bytes,
    )
    if plan.offloads:
        inflight = options.max_inflight_bytes
        rewrites = (
            partial(insert_transfers, plan=plan, store=options.store),
            partial(sink_releases, cost=options.cost),
            partial(advance_prefetches, cost=options.cost, max_inflight_bytes=inflight),
        )
        run_passes(graph, rewrites)
    return plan


def run_passes(graph: TrainingGraph, passes: Sequence[RewritePass]) -> None:
    """Run rewrites in order; after each verify, and log its time and the ops it added.

    Raises GraphError naming the pass whose result is illegal.
    """
    for rewrite in passes:
        name = getattr(rewrite, "func", rewrite).__name__
        before = count_ops(graph)
        start = time.perf_counter()
        rewrite(graph)
        try:
            verify_transfers(graph)
        except GraphError as error:
            raise GraphError(f"after {name}: {error}") from error
        added = count_ops(graph) - before
        log.debug("%s: %.1f ms, +%s", name, 1e3 * (time.perf_counter() - start), dict(added))
    graph.forward.recompile()
    graph.backward.recompile()


def count_ops(graph: TrainingGraph) -> Counter[str]:
    """How often each op stands in the two graphs."""
    return Counter(
        str(node.target)
        for module in (graph.forward, graph.backward)
        for node in module.graph.nodes
        if node.op == "call_function"
    )


def build_timeline(graph: TrainingGraph, cost: CostModel) -> Timeline:
    """When each node starts, and when each returned gradient comes to life."""
    backward = graph.backward.graph
    positions = {node: index for index, node in enumerate(backward.nodes)}
    gradients: list[tuple[int, int]] = []
    for node in dict.fromkeys(get_results(backward)):
        tensor = None if node is None else get_tensor(node)
        if node is not None and tensor is not None and has_hints(tensor):
            gradients.append((positions[node], count_bytes(tensor)))
    return Timeline(
        forward=_start_seconds(graph.forward.graph, cost),
        backward=_start_seconds(backward, cost),
        gradients=tuple(gradients),
    )


def _start_seconds(graph: fx.Graph, cost: CostModel) -> tuple[float, ...]:
    clock = 0.0
    starts = [clock]
    for node in graph.nodes:
        clock += cost.node_seconds(node)
        starts.append(clock)
    return tuple(starts)
