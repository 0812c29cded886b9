"""The pipeline: analyse a graph, choose a plan, then rewrite; verify after each rewrite.

    hoist_saved -> hoist_reductions -> find_saved_values -> build_step -> choose_offloads
        -> insert_transfers -> schedule_transfers

`transform_graph` is the only place that puts passes in order; the passes do not know each other.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from fxoffload.errors import GraphError
from fxoffload.graph import TrainingGraph
from fxoffload.ops import Clocks
from fxoffload.passes.calibration import find_profile, find_transfers
from fxoffload.passes.insertion import insert_transfers
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.op_positions import find_op_positions, list_nodes
from fxoffload.passes.partition_choice import PassOptions, choose_partition
from fxoffload.passes.scheduling import schedule_transfers
from fxoffload.passes.step_model import build_step
from fxoffload.passes.verification import verify_transfers
from fxoffload.planner.graph_model import GraphModel, build_graph_model
from fxoffload.planner.plan import Cut, Keep, Offload, Plan
from fxoffload.planner.selection import evaluate_transfers
from fxoffload.planner.simulation import Simulation
from fxoffload.profile import Profile

log = logging.getLogger(__name__)

RewritePass = Callable[[TrainingGraph], None]


def transform_graph(
    graph: TrainingGraph,
    options: PassOptions,
    *,
    repartition: Callable[[Cut], TrainingGraph] | None = None,
    before_rewrite: Callable[[TrainingGraph], None] | None = None,
) -> Plan:
    """Plan and rewrite `graph` in place; return the plan. If it moves nothing, no node is added.

    repartition(cut): another partition of the same joint graph; `graph` becomes the one with the
    best plan. before_rewrite: called with the chosen partition.
    Raises BudgetError if no plan fits.
    """
    plan = _choose(graph, options, repartition, before_rewrite)
    if plan.offloads:
        schedule = partial(schedule_transfers, plan=plan)
        run_passes(graph, (_make_insertion(plan, options), schedule))
    return plan


def prepare_graph(
    graph: TrainingGraph,
    options: PassOptions,
    *,
    repartition: Callable[[Cut], TrainingGraph] | None = None,
    before_rewrite: Callable[[TrainingGraph], None] | None = None,
) -> tuple[Plan, GraphModel | None]:
    """As transform_graph, for a graph whose ops follow schedules.

    Every value that may move has its ops, each as close to the value's readers as can be: what
    they do is decided while the program runs. The plan is that of the graph by itself. The model
    is what schedules are made from; None where nothing may move.
    """
    plan = _choose(graph, options, repartition, before_rewrite)
    movable = replace(
        plan,
        decisions=tuple(
            Offload() if value.refusal is None else Keep(value.refusal) for value in plan.values
        ),
    )
    if not movable.offloads:
        return plan, None
    step = build_step(graph, plan.values, options.cost, fuses=options.fuses)
    forward, backward = list_nodes(graph.forward.graph), list_nodes(graph.backward.graph)
    run_passes(graph, (_make_insertion(movable, options, blocks=False),))
    return plan, build_graph_model(step, *find_op_positions(graph, forward, backward))


def _choose(
    graph: TrainingGraph,
    options: PassOptions,
    repartition: Callable[[Cut], TrainingGraph] | None,
    before_rewrite: Callable[[TrainingGraph], None] | None,
) -> Plan:
    chosen, plan = choose_partition(graph, options, repartition)
    graph.forward, graph.backward = chosen.forward, chosen.backward
    if before_rewrite is not None:
        before_rewrite(graph)
    return plan


def _make_insertion(plan: Plan, options: PassOptions, *, blocks: bool = True) -> RewritePass:
    return partial(
        insert_transfers,
        plan=plan,
        store=options.store,
        key=options.key,
        fuses=options.fuses,
        blocks=blocks,
    )


def calibrate(
    graph: TrainingGraph, plan: Plan, clocks: Clocks, options: PassOptions
) -> tuple[Profile, Simulation]:
    """The measured Profile of `graph`, which ran by `plan`, and a simulation of `plan` by it.

    graph: the partition that `plan` was made for, not rewritten. clocks: see find_profile.
    """
    values = find_saved_values(graph, min_bytes=options.min_bytes)
    roofline = replace(options.cost, profile=None)
    step = build_step(graph, values, roofline, fuses=options.fuses)
    transfers = find_transfers(step, plan)
    profile = find_profile(step, transfers, clocks, options.cost.links)
    calibrated = replace(options.cost, profile=profile)
    simulation = evaluate_transfers(
        build_step(graph, values, calibrated, fuses=options.fuses),
        transfers,
        options.cost.links,
        max_inflight_bytes=options.max_inflight_bytes,
    )
    return profile, simulation


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
