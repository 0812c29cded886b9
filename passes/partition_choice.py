"""Partition choice: make a plan for several partitions of a joint graph, and take the best.

A partition says which values are saved and which are computed again in the backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch

from fxoffload.cost import CostModel
from fxoffload.errors import BudgetError
from fxoffload.graph import TrainingGraph, get_saved, get_tensor
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.step_model import build_step
from fxoffload.planner.plan import Cut, Plan
from fxoffload.planner.selection import choose_offloads, evaluate_transfers
from fxoffload.planner.simulation import RESOLUTION
from fxoffload.torch_internals import is_checkpointed
from fxoffload.torch_internals.tensor_sizes import count_bytes

# Cuts tried when moving or masks cost time, from what is cheapest to recompute to what is dearest.
# Loops come first: those of all layers alike, so that few more kernels are to be compiled, and no
# chain of them from layer to layer. Each partition of a large graph takes seconds, so the sweep
# ends when no more than RESOLUTION is left to gain, when what one recomputes costs more than it
# could gain, or when so many in a row were no better: one where no transfer is waited for.
CUTS: tuple[Cut, ...] = ("loops", 0.8, 0.6, 0.4, 0.2, 0.0)
ALL_SAVED = 1.0
PATIENCE = 2


@dataclass(frozen=True, slots=True)
class PassOptions:
    """What the passes need to know beside the graph.

    budget_bytes, host_bytes: see choose_offloads. min_bytes: see find_saved_values.
    max_inflight_bytes: see place_transfers. store: the key that offload nodes carry. key: see
    insert_transfers. fuses: see build_step. cut_cost: replaces `cost` where the partition is
    chosen; with it, only a budget is a reason for another partition than the program's own.
    """

    cost: CostModel
    store: str
    cut_cost: CostModel | None = None
    key: str = ""
    budget_bytes: int | Literal["min"] | None = None
    host_bytes: int = 0
    min_bytes: int = 2**20
    max_inflight_bytes: int = 2**30
    fuses: bool = True


def choose_partition(
    graph: TrainingGraph,
    options: PassOptions,
    repartition: Callable[[Cut], TrainingGraph] | None,
) -> tuple[TrainingGraph, Plan]:
    """The partition with the best plan: `graph` itself where moving costs next to no time.

    Only a budget in bytes is a reason to recompute more than the program does by itself; or masks,
    which loops may compute in less time than they are loaded in. A program with checkpoints is
    also tried without them: what they recompute may move instead. Neither may hold more memory
    when the forward ends than the program's own choice with nothing moved, as other graphs may run
    before the backward; without a budget, neither may have a higher peak.
    Raises BudgetError where no plan fits.
    """
    own = _OwnPartition(graph, options)
    if options.cut_cost is None:
        return _try_partitions(own, options, repartition)
    by = replace(options, cost=options.cut_cost)
    other = None if options.budget_bytes is None else repartition
    chosen, plan = _try_partitions(own, by, other)
    return chosen, own.make_plan(chosen, plan.cut, options)


def _try_partitions(
    own: _OwnPartition, options: PassOptions, repartition: Callable[[Cut], TrainingGraph] | None
) -> tuple[TrainingGraph, Plan]:
    tried = _Tried(own, options)
    last = tried.add(own.graph, None)
    if repartition is not None:
        if is_checkpointed(own.graph.forward.graph):
            last = tried.add(repartition(ALL_SAVED), ALL_SAVED)
        _sweep(tried, last, repartition)
    if tried.best is None:
        raise min(tried.errors, key=lambda error: error.lowest_peak_bytes)
    return tried.best


class _OwnPartition:
    """The partition that the program says, and the memory that it takes with nothing moved."""

    def __init__(self, graph: TrainingGraph, options: PassOptions) -> None:
        self.graph = graph
        self._options = options

    def make_plan(self, graph: TrainingGraph, cut: Cut, options: PassOptions) -> Plan:
        """The plan for `graph`, which was made by `cut`, within what choose_partition promises."""
        if cut is None:
            return make_plan(graph, options)
        peak_bytes, held_bytes = self._unmoved_bytes
        plan = make_plan(graph, options, held_bytes=held_bytes)
        if options.budget_bytes is None and plan.peak_bytes > peak_bytes:
            limited = replace(options, budget_bytes=peak_bytes)
            plan = replace(make_plan(graph, limited, held_bytes=held_bytes), budget_bytes=None)
        return replace(plan, cut=cut)

    @cached_property
    def _unmoved_bytes(self) -> tuple[int, int]:
        """Its peak, and what is held when its forward ends."""
        values = find_saved_values(self.graph, min_bytes=self._options.min_bytes)
        step = build_step(self.graph, values, self._options.cost, fuses=self._options.fuses)
        simulation = evaluate_transfers(step, {}, self._options.cost.links)
        return simulation.peak_bytes, simulation.live_bytes[step.forward_length - 1]


@dataclass(frozen=True, slots=True)
class _Partition:
    """What a partition saves beside parameters and the like, and its plan; None: none fits.

    mask_seconds: what bools among that take, see CostModel; a loop would compute them in less.
    """

    saved_bytes: int
    mask_seconds: float
    plan: Plan | None


class _Tried:
    """Partitions that were planned for. best: the one with the best plan; None until one fits.

    has_budget: whether that is one in bytes.
    """

    def __init__(self, own: _OwnPartition, options: PassOptions) -> None:
        self.best: tuple[TrainingGraph, Plan] | None = None
        self.errors: list[BudgetError] = []
        self.has_budget = isinstance(options.budget_bytes, int)
        self._own = own
        self._options = options

    def add(self, graph: TrainingGraph, cut: Cut) -> _Partition:
        """Plan for `graph`, which was made by `cut`."""
        try:
            plan = self._own.make_plan(graph, cut, self._options)
        except BudgetError as error:
            self.errors.append(error)
            return self._describe(graph, None)
        if self.best is None or self._find_cost(plan) < self._find_cost(self.best[1]):
            self.best = graph, plan
        return self._describe(graph, plan)

    def _describe(self, graph: TrainingGraph, plan: Plan | None) -> _Partition:
        bools = _count_saved(graph, torch.bool) if self._options.fuses else 0
        mask_seconds = self._options.cost.mask_seconds(bools, bools)
        return _Partition(_count_saved(graph), mask_seconds, plan)

    def _find_cost(self, plan: Plan) -> tuple[float, ...]:
        cost = plan.step_seconds, plan.offloaded_bytes
        return (plan.peak_bytes, *cost) if self._options.budget_bytes == "min" else cost


def _sweep(tried: _Tried, whole: _Partition, repartition: Callable[[Cut], TrainingGraph]) -> None:
    """Add partitions that save less and less than `whole`, while there is something to gain."""
    last, missed, seconds_per_byte = whole, 0, 0.0
    for cut in CUTS if tried.has_budget else CUTS[:1]:
        if tried.best is not None:
            _, plan = tried.best
            if missed >= (PATIENCE if plan.exposed_seconds else 1):
                return
            gain = _find_gain(plan, seconds_per_byte) if tried.has_budget else 0.0
            if gain + last.mask_seconds <= RESOLUTION * plan.step_seconds:
                return
        if isinstance(cut, float) and cut * whole.saved_bytes >= last.saved_bytes:
            continue  # torch would only find the last one again.
        before = tried.best
        found = tried.add(repartition(cut), cut)
        missed = missed + 1 if tried.best is before else 0
        if found.plan is not None and tried.best is not None:
            if last.plan is not None and found.saved_bytes < last.saved_bytes:
                recomputed_seconds = found.plan.compute_seconds - last.plan.compute_seconds
                fewer_bytes = last.saved_bytes - found.saved_bytes
                seconds_per_byte = max(0.0, recomputed_seconds) / fewer_bytes
            if found.plan.compute_seconds >= tried.best[1].step_seconds:
                return  # Further cuts recompute even more.
        last = found


def _count_saved(graph: TrainingGraph, dtype: torch.dtype | None = None) -> int:
    """Bytes of what is saved, of that dtype, beside parameters, buffers and the like."""
    tensors = (get_tensor(n) for n in get_saved(graph) if n.name not in graph.static_inputs)
    known = (x for x in tensors if x is not None)
    return sum(count_bytes(x) for x in known if dtype is None or x.dtype == dtype)


def _find_gain(plan: Plan, seconds_per_byte: float) -> float:
    """The seconds that recomputing more than `plan` does can gain, a byte of it for no less.

    What is waited for may be little of what moves, but all of it takes its part of compute.
    """
    recomputed_seconds = seconds_per_byte * plan.offloaded_bytes
    return plan.exposed_seconds + max(0.0, plan.contended_seconds - recomputed_seconds)


def make_plan(graph: TrainingGraph, options: PassOptions, *, held_bytes: int | None = None) -> Plan:
    """The plan for `graph`, which stays as it is. Raises BudgetError where no plan fits.

    held_bytes: see choose_offloads.
    """
    values = find_saved_values(graph, min_bytes=options.min_bytes)
    return choose_offloads(
        build_step(graph, values, options.cost, fuses=options.fuses),
        options.cost.links,
        budget_bytes=options.budget_bytes,
        held_bytes=held_bytes,
        host_bytes=options.host_bytes,
        max_inflight_bytes=options.max_inflight_bytes,
    )
