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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from fxoffload.cost import CostModel
from fxoffload.errors import BudgetError, GraphError
from fxoffload.graph import TrainingGraph, count_bytes, get_saved, get_tensor, has_hints
from fxoffload.passes.calibration import Event, find_profile, find_transfers
from fxoffload.passes.insertion import insert_transfers
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.scheduling import schedule_transfers
from fxoffload.passes.selection import choose_offloads, evaluate_transfers
from fxoffload.passes.step_model import build_step
from fxoffload.passes.verification import verify_transfers
from fxoffload.plan import Cut, Plan
from fxoffload.profile import Profile
from fxoffload.simulation import RESOLUTION, Simulation
from fxoffload.torch_internals import is_checkpointed

log = logging.getLogger(__name__)

# Cuts tried when moving alone costs time, from what is cheapest to recompute to what is dearest.
# Loops come first: those of all layers alike, so that few more kernels are to be compiled, and no
# chain of them from layer to layer. Each partition of a large graph takes seconds, so the sweep
# ends when no more than RESOLUTION is left to gain, when what one recomputes costs more than it
# could gain, or when so many in a row were no better: one where no transfer is waited for.
CUTS: tuple[Cut, ...] = ("loops", 0.8, 0.6, 0.4, 0.2, 0.0)
ALL_SAVED = 1.0
PATIENCE = 2

RewritePass = Callable[[TrainingGraph], None]


@dataclass(frozen=True, slots=True)
class PassOptions:
    """What the passes need to know beside the graph.

    budget_bytes, host_bytes: see choose_offloads. min_bytes: see find_saved_values.
    max_inflight_bytes: see place_transfers. store: the key that offload nodes carry. key: see
    insert_transfers. fuses: see build_step.
    """

    cost: CostModel
    store: str
    key: str = ""
    budget_bytes: int | Literal["min"] | None = None
    host_bytes: int = 0
    min_bytes: int = 2**20
    max_inflight_bytes: int = 2**30
    fuses: bool = True


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


def choose_partition(
    graph: TrainingGraph,
    options: PassOptions,
    repartition: Callable[[Cut], TrainingGraph] | None,
) -> tuple[TrainingGraph, Plan]:
    """The partition with the best plan: `graph` itself where moving costs next to no time.

    Only a budget in bytes is a reason to recompute more than the program does by itself. A program
    with checkpoints is also tried without them: what they recompute may move instead. Without a
    budget, that must take no more memory than the checkpoints, with nothing moved.
    """
    best: tuple[TrainingGraph, Plan] | None = None
    errors: list[BudgetError] = []

    def attempt(graph: TrainingGraph, cut: Cut) -> Plan | None:
        """The plan of this partition, which may be the best so far; None where none fits."""
        nonlocal best
        try:
            plan = replace(make_plan(graph, options), cut=cut)
            if best is not None and options.budget_bytes is None:
                plan = _limit_peak(graph, options, plan, best[1].unmoved_peak_bytes)
        except BudgetError as error:
            errors.append(error)
            return None
        if best is None or _find_cost(plan, options) < _find_cost(best[1], options):
            best = graph, plan
        return plan

    last = attempt(graph, None)
    if repartition is not None:
        whole_bytes = reached_bytes = _count_saved(graph)
        if is_checkpointed(graph.forward.graph):
            other = repartition(ALL_SAVED)
            last = attempt(other, ALL_SAVED)
            whole_bytes = reached_bytes = _count_saved(other)
        missed, seconds_per_byte = 0, 0.0
        for cut in CUTS if isinstance(options.budget_bytes, int) else ():
            if best is not None and (
                missed >= (PATIENCE if best[1].exposed_seconds else 1)
                or _find_gain(best[1], seconds_per_byte) <= RESOLUTION * best[1].step_seconds
            ):
                break
            if isinstance(cut, float) and cut * whole_bytes >= reached_bytes:
                continue  # torch would only find the last one again.
            other = repartition(cut)
            plan, saved_bytes = attempt(other, cut), _count_saved(other)
            missed = 0 if best is not None and best[0] is other else missed + 1
            if best is not None and plan is not None:
                if last is not None and saved_bytes < reached_bytes:
                    recomputed_seconds = max(0.0, plan.compute_seconds - last.compute_seconds)
                    seconds_per_byte = recomputed_seconds / (reached_bytes - saved_bytes)
                if plan.compute_seconds >= best[1].step_seconds:
                    break  # Further cuts recompute even more.
            last, reached_bytes = plan, saved_bytes
    if best is None:
        raise min(errors, key=lambda error: error.lowest_peak_bytes)
    return best


def _count_saved(graph: TrainingGraph) -> int:
    """Bytes of what is saved beside parameters, buffers and the like."""
    tensors = (get_tensor(n) for n in get_saved(graph) if n.name not in graph.static_inputs)
    return sum(count_bytes(x) for x in tensors if x is not None and has_hints(x))


def _limit_peak(graph: TrainingGraph, options: PassOptions, plan: Plan, peak_bytes: int) -> Plan:
    """`plan`, which has no budget, or one that moves more. Raises BudgetError if none does."""
    if plan.peak_bytes <= peak_bytes:
        return plan
    limited = make_plan(graph, replace(options, budget_bytes=peak_bytes))
    return replace(limited, budget_bytes=None, cut=plan.cut)


def _find_cost(plan: Plan, options: PassOptions) -> tuple[float, ...]:
    cost = plan.step_seconds, plan.offloaded_bytes
    return (plan.peak_bytes, *cost) if options.budget_bytes == "min" else cost


def _find_gain(plan: Plan, seconds_per_byte: float) -> float:
    """The seconds that recomputing more than `plan` does can gain, a byte of it for no less.

    What is waited for may be little of what moves, but all of it takes its part of compute.
    """
    recomputed_seconds = seconds_per_byte * plan.offloaded_bytes
    return plan.exposed_seconds + max(0.0, plan.contended_seconds - recomputed_seconds)


def make_plan(graph: TrainingGraph, options: PassOptions) -> Plan:
    """The plan for `graph`, which stays as it is. Raises BudgetError where no plan fits."""
    values = find_saved_values(graph, min_bytes=options.min_bytes)
    return choose_offloads(
        build_step(graph, values, options.cost, fuses=options.fuses),
        options.cost.links,
        budget_bytes=options.budget_bytes,
        host_bytes=options.host_bytes,
        max_inflight_bytes=options.max_inflight_bytes,
    )


def calibrate(
    graph: TrainingGraph, plan: Plan, clocks: Mapping[Event, float], options: PassOptions
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
