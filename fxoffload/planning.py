"""Build the partitioners that plan and rewrite graphs, by the user's options and the machine."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

from torch import fx

from fxoffload import passes, runtime
from fxoffload.artifacts import emit_graphs, emit_plan
from fxoffload.config import OffloadConfig
from fxoffload.cost import CostModel
from fxoffload.errors import BudgetError
from fxoffload.graph import TrainingGraph
from fxoffload.machine import (
    find_device,
    find_host_bytes,
    find_nominal_cost,
    find_room,
    is_distributed,
    measure_cost,
)
from fxoffload.passes import PassOptions, Transformed
from fxoffload.planner.graph_model import GraphModel
from fxoffload.planner.plan import Cut, Plan
from fxoffload.sizes import UNLIMITED_BYTES
from fxoffload.torch_internals import (
    Graphs,
    OffloadPartitioner,
    PartitionFunction,
    is_tracing,
)

log = logging.getLogger(__name__)

TransformCallback = Callable[[TrainingGraph, Transformed], None]


def build_partitioner(
    config: OffloadConfig,
    store: str,
    *,
    key: str = "",
    cut: Cut | Literal["best"] = "best",
    cost: CostModel | None = None,
    on_partitioned: Callable[[TrainingGraph], None] | None = None,
    on_transformed: TransformCallback | None = None,
) -> OffloadPartitioner:
    """A partitioner that plans and rewrites.

    store: key of the store that must hold what moves; "" if nothing will run. key: names the graph
    for the runtime, and its code in caches of compiled graphs; it must follow from the graph,
    `config` and `cut`. cut: that of the graph; "best" is the one with the best plan for the graph
    alone. cost: of other hardware than this machine. on_partitioned is called with the chosen
    partition in torch's order, before any pass; on_transformed with the result.
    """
    ranks = cost is None and is_distributed()

    def choose(
        partition: PartitionFunction, num_outputs: int, static_inputs: tuple[int, ...]
    ) -> Graphs:
        orders: dict[fx.GraphModule, passes.Order] = {}
        build = make_builder(partition, num_outputs, static_inputs, orders)
        graph = build(None if cut == "best" else cut)
        if config.enabled:
            known = cost or measure_cost(config, graph)
            cut_cost = _find_agreed_cost(config, known, graph) if cost is None else None
            options = build_options(config, known, store, key, cut_cost=cut_cost)
            # Ranks hold different amounts of memory, but must choose the same cut.
            limits = cost is None and not ranks and config.memory_budget is None
            room_bytes = find_room(config, find_device(graph)[0]) if limits else None
            others = build if cut == "best" else None
            show = partial(_show_partition, orders=orders, on_partitioned=on_partitioned)
            found, options = _transform(graph, options, room_bytes, others, show)
            if cut != "best":
                found = replace(found, plan=replace(found.plan, cut=cut))
            if found.model is None:
                plan = _restore_order(graph, found.plan, orders[graph.forward], options)
                found = Transformed(plan, None)
            log.info("%s", found.plan)
            emit_graphs(graph, "after")
            emit_plan(found.plan)
            if store:
                reserve(store, found.plan)
            if on_transformed is not None:
                on_transformed(graph, found)
        return graph.forward, graph.backward

    return OffloadPartitioner(choose, f"fxoffload {key}")


def _find_agreed_cost(
    config: OffloadConfig, known: CostModel, graph: TrainingGraph
) -> CostModel | None:
    """The costs by which all ranks of a job choose cuts; None if they can use `known`."""
    if config.stated_hardware is not None or not is_distributed():
        return None
    return find_nominal_cost(known.links, graph)


def build_tracer(
    config: OffloadConfig, on_traced: Callable[[Mapping[Cut, GraphModel]], None]
) -> OffloadPartitioner:
    """A partitioner that changes nothing, and passes on the models of a graph at all of its cuts.

    Those are the program's own, and the ones that choose_partition tries; without the cuts at which
    nothing may move, or at which what must move is not saved.
    """

    def choose(
        partition: PartitionFunction, num_outputs: int, static_inputs: tuple[int, ...]
    ) -> Graphs:
        build = make_builder(partition, num_outputs, static_inputs, {})
        own = build(None)
        known = measure_cost(config, own)
        agreed = _find_agreed_cost(config, known, own) or known
        options = replace(build_options(config, agreed), budget_bytes=UNLIMITED_BYTES)
        forced = passes.find_forced(own)
        found: dict[Cut, GraphModel] = {}
        for cut in passes.list_cuts(own):
            graph = build(cut)
            if passes.saves(graph, forced):
                model = passes.transform_graph(graph, options).model
                if model is not None:
                    found[cut] = model
        on_traced(found)
        return own.forward, own.backward

    return OffloadPartitioner(choose, "fxoffload traces cuts")


def find_identity(config: OffloadConfig, cut: Cut | Literal["best"] = "best") -> str:
    """What the code of a compiled graph depends on beside the graph. Nothing of it is measured.

    Speeds decide which values move, and when; that needs no other code. They also decide the cut of
    a graph that is compiled for the first time. A process that finds its code takes over its cut.
    """
    ranks = " the same cut on all ranks" if is_distributed() else ""
    return f"{hash_sources()} {config.key} {cut}{ranks}"


def may_recut(config: OffloadConfig) -> bool:
    """Whether a graph may be compiled again at another cut, once its steps have shown that it pays.

    Not without a budget, when no transfer costs time, and not under "min", which asks for all
    transfers. What `device_memory` leaves differs between the ranks of a job, which must choose the
    same cuts.
    """
    limited = config.device_memory is not None and not is_distributed()
    return config.enabled and (limited or config.budget_bytes is not None)


def build_options(
    config: OffloadConfig,
    cost: CostModel,
    store: str = "",
    key: str = "",
    *,
    cut_cost: CostModel | None = None,
) -> PassOptions:
    """What the passes need to know to plan a graph under `config`."""
    return PassOptions(
        cost=cost,
        store=store,
        cut_cost=cut_cost,
        key=key,
        budget_bytes="min" if config.memory_budget == "min" else config.budget_bytes,
        host_bytes=find_host_bytes(config, cost.links),
        cut_host_bytes=find_host_bytes(config, cost.links, is_nominal=True),
        min_bytes=config.min_storage_bytes,
        max_inflight_bytes=config.inflight_bytes,
        fuses=config.compiler == "inductor",
    )


def reserve(store: str, plan: Plan) -> None:
    """Make sure that `store` can hold what one step by `plan` moves; StoreFull otherwise.

    A plan of an earlier process may count on a larger host tier: the rest goes to NVMe.
    """
    found = runtime.find_store(store)
    needed = {"host": 0, "nvme": 0}
    for value, decision in plan.offloads:
        needed[decision.tier] += value.nbytes
    excess_bytes = max(0, needed["host"] - found.host_bytes)
    if needed["nvme"] + excess_bytes:
        found.reserve(needed["nvme"] + excess_bytes, "nvme")


def _transform(
    graph: TrainingGraph,
    options: PassOptions,
    room_bytes: int | None,
    build: Callable[[Cut], TrainingGraph] | None,
    before_rewrite: Callable[[TrainingGraph], None] | None,
) -> tuple[Transformed, PassOptions]:
    """As passes.transform_graph, and the options by which it was done.

    room_bytes: what a limit of the device's memory leaves to the graph. It only decides the cut.
    Where nothing fits, the cut is that of the lowest peak: what is in memory now may be gone when
    the graph runs.
    """
    transform = partial(
        passes.transform_graph, graph, repartition=build, before_rewrite=before_rewrite
    )
    if room_bytes is None:
        return transform(options), options
    limited = replace(options, budget_bytes=room_bytes)
    try:
        return transform(limited), limited
    except BudgetError as error:
        log.info("cut for the lowest peak, as now: %s", error)
    lowest = replace(options, budget_bytes="min")
    return transform(lowest), lowest


def _show_partition(
    graph: TrainingGraph,
    orders: Mapping[fx.GraphModule, passes.Order],
    on_partitioned: Callable[[TrainingGraph], None] | None,
) -> None:
    """Show `graph` in torch's order, which `orders` has; then restore the hoisted order."""
    if on_partitioned is None and not is_tracing():
        return
    hoisted = passes.find_order(graph)
    passes.restore_order(graph, orders[graph.forward])
    emit_graphs(graph, "before")
    if on_partitioned is not None:
        on_partitioned(graph)
    passes.restore_order(graph, hoisted)


@cache
def hash_sources() -> str:
    """A digest of this package's sources: a changed pass must not meet a cached graph."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(passes.__file__).parent):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _restore_order(
    graph: TrainingGraph, plan: Plan, order: passes.Order, options: PassOptions
) -> Plan:
    """Put the nodes back into torch's order, as `plan` moves nothing; return the plan of it.

    The hoisted order and `plan` stay if torch's order does not fit the budget without transfers.
    """
    hoisted = passes.find_order(graph)
    passes.restore_order(graph, order)
    with suppress(BudgetError):
        found = passes.make_plan(graph, options)
        if not found.offloads:
            return replace(found, cut=plan.cut)
    passes.restore_order(graph, hoisted)
    return plan


def make_builder(
    partition: PartitionFunction,
    num_outputs: int,
    static_inputs: tuple[int, ...],
    orders: dict[fx.GraphModule, passes.Order],
) -> Callable[[Cut], TrainingGraph]:
    """A function of a cut that partitions and hoists; it saves torch's order in `orders`."""

    def build(cut: Cut) -> TrainingGraph:
        forward, backward = partition(cut)
        inputs: list[fx.Node] = list(forward.graph.find_nodes(op="placeholder"))
        names = frozenset(inputs[index].name for index in static_inputs if index < len(inputs))
        graph = TrainingGraph(forward, backward, num_outputs, names)
        orders[forward] = passes.find_order(graph)
        # Also with enabled=False: the parity reference must be the same graphs.
        passes.hoist_saved(graph)
        passes.hoist_reductions(graph)
        return graph

    return build
