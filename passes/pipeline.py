"""The pipeline: analyse, choose, then rewrite step by step, verifying after each.

    hoist_saved -> hoist_reductions -> find_saved_values -> build_step -> choose_offloads
        -> insert_transfers -> schedule_transfers

`transform_graph` is the one place where passes are put in order; the passes do not know each
other.
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
from fxoffload.passes.partition_choice import PassOptions, choose_partition
from fxoffload.passes.scheduling import schedule_transfers
from fxoffload.passes.step_model import build_step
from fxoffload.passes.verification import verify_transfers
from fxoffload.planner.plan import Cut, Plan
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
    """Plan and rewrite `graph` in place; returns the plan. An empty plan leaves it untouched.

    repartition: another partition of the same joint graph, cut like that; `graph` becomes it where
    that is better. before_rewrite: is shown what was chosen.
    Raises BudgetError where no plan fits.
    """
    chosen, plan = choose_partition(graph, options, repartition)
    graph.forward, graph.backward = chosen.forward, chosen.backward
    if before_rewrite is not None:
        before_rewrite(graph)
    if plan.offloads:
        rewrites = (
            partial(
                insert_transfers,
                plan=plan,
                store=options.store,
                key=options.key,
                fuses=options.fuses,
            ),
            partial(schedule_transfers, plan=plan),
        )
        run_passes(graph, rewrites)
    return plan


def calibrate(
    graph: TrainingGraph, plan: Plan, clocks: Clocks, options: PassOptions
) -> tuple[Profile, Simulation]:
    """What the nodes of `graph` took when it ran by `plan`, and what `plan` then leads to.

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
