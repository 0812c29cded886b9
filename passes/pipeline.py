"""The pipeline: analyse a graph, choose a partition, then rewrite; verify after each rewrite.

    hoist_saved -> hoist_reductions -> find_saved_values -> build_step -> choose_transfers
        -> insert_transfers -> find_op_positions -> build_graph_model

`transform_graph` is the only place that puts passes in order; the passes do not know each other.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fxoffload.errors import GraphError
from fxoffload.graph import TrainingGraph
from fxoffload.passes.insertion import insert_transfers
from fxoffload.passes.op_positions import find_op_positions, list_nodes
from fxoffload.passes.partition_choice import PassOptions, choose_partition
from fxoffload.passes.step_model import build_step
from fxoffload.passes.verification import verify_transfers
from fxoffload.planner.graph_model import GraphModel, build_graph_model
from fxoffload.planner.placement import place_transfers
from fxoffload.planner.plan import Cut, Plan, Tier

log = logging.getLogger(__name__)

RewritePass = Callable[[TrainingGraph], None]


@dataclass(frozen=True, slots=True)
class Transformed:
    """What is known of a transformed graph.

    plan: that of the graph by itself. model: what schedules of whole steps are made from; None
    where nothing may move: no node is added then.
    """

    plan: Plan
    model: GraphModel | None


def transform_graph(
    graph: TrainingGraph,
    options: PassOptions,
    *,
    repartition: Callable[[Cut], TrainingGraph] | None = None,
    before_rewrite: Callable[[TrainingGraph], None] | None = None,
) -> Transformed:
    """Choose a partition, and give every value that may move its ops; `graph` changes in place.

    The ops stand as close to the value's readers as can be, but for prefetches, which stand where
    the read would have to start: what they do is decided while the program runs.
    repartition(cut): another partition of the same joint graph; `graph` becomes the one with the
    best plan. before_rewrite: called with the chosen partition.
    Raises BudgetError if no plan fits.
    """
    chosen, plan = choose_partition(graph, options, repartition)
    graph.forward, graph.backward = chosen.forward, chosen.backward
    if before_rewrite is not None:
        before_rewrite(graph)
    if not any(value.has_ops for value in plan.values):
        return Transformed(plan, None)
    step = build_step(graph, plan.values, options.cost, fuses=options.fuses)
    forward, backward = list_nodes(graph.forward.graph), list_nodes(graph.backward.graph)
    has_host_tier = options.host_bytes > 0 and "host" in options.cost.links
    tier: Tier = "host" if has_host_tier else "nvme"
    movable: dict[str, Tier] = {v.name: tier for v in plan.values if v.has_ops}
    transfers = place_transfers(step, movable, options.cost.links)
    insert = partial(
        insert_transfers,
        values=plan.values,
        store=options.store,
        key=options.key,
        tier=tier,
        fuses=options.fuses,
        prefetched_before={name: step.names[it.prefetch] for name, it in transfers.items()},
    )
    run_passes(graph, (insert,))
    model = build_graph_model(step, *find_op_positions(graph, forward, backward))
    return Transformed(plan, model)


def run_passes(graph: TrainingGraph, passes: Sequence[RewritePass]) -> None:
    """Run rewrites in order; after each, verify the graph, and log the time and the added ops.

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
    """The number of nodes of each op in the two graphs."""
    return Counter(
        str(node.target)
        for module in (graph.forward, graph.backward)
        for node in module.graph.nodes
        if node.op == "call_function"
    )
