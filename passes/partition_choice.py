"""Partition choice: make a plan for several partitions of a joint graph, and take the best.

A partition of the joint graph decides which values the forward saves, and which ones the backward
recomputes.
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
from fxoffload.marks import MOVE, POLICY
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.step_model import build_step
from fxoffload.planner.plan import Cut, Plan
from fxoffload.planner.plan_writer import write_plan
from fxoffload.planner.selection import choose_transfers
from fxoffload.planner.simulation import RESOLUTION, simulate
from fxoffload.torch_internals import find_marks, is_checkpointed
from fxoffload.torch_internals.tensor_sizes import count_bytes

# The cuts that are tried if moving or masks cost time, from the cheapest recomputation to the most
# expensive. "loops" is first: it recomputes the same loops in every layer, so that few more kernels
# are compiled, and no chain of loops from layer to layer. Partitioning a large graph takes seconds,
# so the sweep ends early: if no more than RESOLUTION is left to gain, if the compute time of a
# partition alone reaches the best step time, or after PATIENCE cuts in a row that were no better
# (after one if no transfer time is exposed).
CUTS: tuple[Cut, ...] = ("loops", 0.8, 0.6, 0.4, 0.2, 0.0)
ALL_SAVED = 1.0
LEGAL_CUTS: tuple[Cut, ...] = (None, ALL_SAVED, *CUTS)
PATIENCE = 2


@dataclass(frozen=True, slots=True)
class PassOptions:
    """The options of the passes.

    budget_bytes, host_bytes: see choose_transfers. min_bytes: see find_saved_values.
    max_inflight_bytes: see choose_transfers. store, key: see insert_transfers. fuses: see
    build_step. cut_cost: the cost model that chooses the partition, if not `cost`; if it is given,
    `cut_host_bytes` stands for `host_bytes` there, and other partitions than the program's own are
    tried only under a budget.
    """

    cost: CostModel
    store: str
    cut_cost: CostModel | None = None
    cut_host_bytes: int = 0
    key: str = ""
    budget_bytes: int | Literal["min"] | None = None
    host_bytes: int = 0
    min_bytes: int = 2**20
    max_inflight_bytes: int | None = None
    fuses: bool = True


def choose_partition(
    graph: TrainingGraph,
    options: PassOptions,
    repartition: Callable[[Cut], TrainingGraph] | None,
) -> tuple[TrainingGraph, Plan]:
    """The partition with the best plan, and its plan; `graph` itself if moving costs little time.

    graph: the program's own partition. repartition(cut): another one of the same joint graph; None
    if there is none. Partitions that recompute more than the program does are tried under a budget
    in bytes, and for saved masks, as loops may recompute a mask in less time than it takes to load.
    A program with checkpoints is also tried without them: the values that they recompute may move
    instead. No other partition may hold more memory at the end of the forward than the program's
    own with nothing moved, as other graphs may run before the backward; without a budget, none may
    have a higher peak either. All save what the program says must move. Raises BudgetError if no
    plan fits.
    """
    own = _OwnPartition(graph, options)
    if options.cut_cost is None:
        return _try_partitions(own, options, repartition)
    by = replace(options, cost=options.cut_cost, host_bytes=options.cut_host_bytes)
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
    """The program's own partition, and the memory that it takes with nothing moved."""

    def __init__(self, graph: TrainingGraph, options: PassOptions) -> None:
        self.graph = graph
        self._options = options

    def make_plan(self, graph: TrainingGraph, cut: Cut, options: PassOptions) -> Plan:
        """The plan for `graph`, made by `cut`, within the memory limits of choose_partition."""
        if cut is None:
            return make_plan(graph, options)
        peak_bytes, held_bytes = self._unmoved_bytes
        plan = make_plan(graph, options, held_bytes=held_bytes)
        if options.budget_bytes is None and plan.peak_bytes > peak_bytes:
            limited = replace(options, budget_bytes=peak_bytes)
            plan = replace(make_plan(graph, limited, held_bytes=held_bytes), budget_bytes=None)
        return replace(plan, cut=cut)

    def may_become(self, graph: TrainingGraph) -> bool:
        """Whether `graph` saves, and also reads, every value that the program says must move."""
        return saves(graph, self._forced)

    @cached_property
    def _forced(self) -> frozenset[str]:
        return find_forced(self.graph)

    @cached_property
    def _unmoved_bytes(self) -> tuple[int, int]:
        """With nothing moved: the peak, and the bytes that are held when the forward ends."""
        values = find_saved_values(self.graph, min_bytes=self._options.min_bytes)
        step = build_step(self.graph, values, self._options.cost, fuses=self._options.fuses)
        simulation = simulate(step, {}, {})
        return simulation.peak_bytes, simulation.live_bytes[step.forward_length - 1]


@dataclass(frozen=True, slots=True)
class _Partition:
    """A partition that was tried: what it saves, and its plan.

    saved_bytes: without parameters and other static inputs. mask_seconds: the time to store and
    load the saved bools (see CostModel); recomputing them in a loop may take less. plan: None if
    none fits, or if it does not save what must move.
    """

    saved_bytes: int
    mask_seconds: float
    plan: Plan | None


class _Tried:
    """The partitions that were tried.

    best: the one with the best plan, and that plan; None until one fits. errors: of those that do
    not fit. has_budget: whether there is a budget in bytes.
    """

    def __init__(self, own: _OwnPartition, options: PassOptions) -> None:
        self.best: tuple[TrainingGraph, Plan] | None = None
        self.errors: list[BudgetError] = []
        self.has_budget = isinstance(options.budget_bytes, int)
        self._own = own
        self._options = options

    def add(self, graph: TrainingGraph, cut: Cut) -> _Partition:
        """Make a plan for `graph`, the partition by `cut`."""
        if not self._own.may_become(graph):
            return self._describe(graph, None)
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


def list_cuts(graph: TrainingGraph) -> tuple[Cut, ...]:
    """The cuts that choose_partition may try for `graph`, the program's own partition."""
    lifts = is_checkpointed(graph.forward.graph)
    return tuple(cut for cut in LEGAL_CUTS if lifts or cut != ALL_SAVED)


def saves(graph: TrainingGraph, forced: frozenset[str]) -> bool:
    """Whether `graph` saves all of the values `forced`, which the program says must move."""
    return not forced or forced <= find_forced(graph)


def find_forced(graph: TrainingGraph) -> frozenset[str]:
    """Names of the values that the program says must move."""
    if not any(find_marks(node) & {MOVE, POLICY} for node in graph.forward.graph.nodes):
        return frozenset()  # As in most programs, without an analysis.
    return frozenset(value.name for value in find_saved_values(graph) if value.must_move)


def _sweep(tried: _Tried, whole: _Partition, repartition: Callable[[Cut], TrainingGraph]) -> None:
    """Try partitions that save less and less than `whole`, while there is something to gain."""
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
            continue  # torch would return the last partition again.
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
    """Bytes of the saved values of `dtype` (of all if None), without static inputs."""
    tensors = (get_tensor(n) for n in get_saved(graph) if n.name not in graph.static_inputs)
    known = (x for x in tensors if x is not None)
    return sum(count_bytes(x) for x in known if dtype is None or x.dtype == dtype)


def _find_gain(plan: Plan, seconds_per_byte: float) -> float:
    """The most seconds that recomputing more than `plan` does can gain.

    seconds_per_byte: the least that recomputing another byte costs. All exposed seconds can be
    gained. The seconds that the transfers take from compute are spent on all moved bytes, exposed
    or not, so recomputing all of these counts against them.
    """
    recomputed_seconds = seconds_per_byte * plan.offloaded_bytes
    return plan.exposed_seconds + max(0.0, plan.contended_seconds - recomputed_seconds)


def make_plan(graph: TrainingGraph, options: PassOptions, *, held_bytes: int | None = None) -> Plan:
    """The plan for `graph`, which is not changed. Raises BudgetError if no plan fits.

    held_bytes: see choose_transfers.
    """
    values = find_saved_values(graph, min_bytes=options.min_bytes)
    step = build_step(graph, values, options.cost, fuses=options.fuses)
    choice = choose_transfers(
        step,
        options.cost.links,
        budget_bytes=options.budget_bytes,
        held_bytes=held_bytes,
        host_bytes=options.host_bytes,
        max_inflight_bytes=options.max_inflight_bytes,
    )
    return write_plan(step, choice, budget_bytes=options.budget_bytes)
