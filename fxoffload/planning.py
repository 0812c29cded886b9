"""From options to a partitioner: what the passes must know of this machine, and their plan."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from torch import fx

from fxoffload import passes, runtime
from fxoffload.config import OffloadConfig
from fxoffload.cost import CostModel
from fxoffload.errors import BudgetError
from fxoffload.graph import TrainingGraph, get_tensor
from fxoffload.machine import find_nominal_cost, measure_cost, measure_links
from fxoffload.ops import Clocks
from fxoffload.passes import PassOptions
from fxoffload.planner.graph_model import GraphModel
from fxoffload.planner.plan import Cut, Plan
from fxoffload.planner.simulation import Simulation
from fxoffload.profile import Profile
from fxoffload.replanning import is_distributed
from fxoffload.torch_internals import Graphs, OffloadPartitioner, PartitionFunction
from fxoffload.torch_internals.tensor_sizes import is_static

log = logging.getLogger(__name__)

TransformCallback = Callable[[TrainingGraph, Plan], None]


@dataclass(frozen=True, slots=True)
class Review:
    """What a plan turned out to lead to, and the plan that is made once that is known."""

    profile: Profile
    before: Simulation
    after: Plan


def build_partitioner(
    config: OffloadConfig,
    store: str,
    *,
    key: str = "",
    profile: Profile | None = None,
    cost: CostModel | None = None,
    on_transformed: TransformCallback | None = None,
    on_modelled: Callable[[GraphModel], None] | None = None,
    on_partitioned: Callable[[TrainingGraph], None] | None = None,
) -> OffloadPartitioner:
    """A partitioner that plans and rewrites.

    store: key of the store that must hold what moves; "" where nothing will run. key: under what
    the runtime knows the graph, its machine included. profile: what its nodes took before. cost:
    of other hardware than this machine. on_modelled: lets the ops follow schedules, and sees what
    these are made from; not called where nothing may move. on_partitioned sees the chosen partition
    before it is rewritten, on_transformed the result.
    """
    links = measure_links(config) if config.enabled and cost is None else {}
    ranks = cost is None and is_distributed()

    def choose(
        partition: PartitionFunction, num_outputs: int, static_inputs: tuple[int, ...]
    ) -> Graphs:
        orders: dict[fx.GraphModule, passes.Order] = {}
        build = _make_builder(partition, num_outputs, static_inputs, orders)
        graph = build(None)
        if config.enabled:
            known = cost or measure_cost(config, links, graph, profile)
            cut_cost = find_nominal_cost(links, graph) if ranks else None
            options = build_options(config, known, store, key, cut_cost=cut_cost)
            if on_modelled is not None:
                plan, model = passes.prepare_graph(
                    graph, options, repartition=build, before_rewrite=on_partitioned
                )
                if model is not None:
                    on_modelled(model)
            else:
                plan = passes.transform_graph(
                    graph, options, repartition=build, before_rewrite=on_partitioned
                )
                if not plan.offloads:
                    plan = _restore_order(graph, plan, orders[graph.forward], options)
            log.info("%s", plan)
            if store:
                reserve(store, plan)
            if on_transformed is not None:
                on_transformed(graph, plan)
        return graph.forward, graph.backward

    # Speed and contention follow from the graph, the options and the machine, all in `key`.
    scheduled = " follows schedules" if on_modelled is not None else ""
    identity = (
        f"fxoffload{scheduled} {hash_sources()} {config.key} {key} {sorted(links.items())} {cost}"
    )
    if ranks:
        identity += " the same cut on all ranks"
    if profile is not None:
        identity += f" {profile.digest}"
    return OffloadPartitioner(choose, identity)


def build_reviewer(
    config: OffloadConfig,
    plan: Plan,
    clocks: Clocks,
    on_reviewed: Callable[[Review], None],
) -> OffloadPartitioner:
    """A partitioner that rewrites nothing: it looks at `plan` in the light of `clocks`.

    clocks: see passes.find_profile. on_reviewed is not called where sizes have become symbolic:
    then this is not the graph that ran.
    """
    links = measure_links(config)

    def choose(
        partition: PartitionFunction, num_outputs: int, static_inputs: tuple[int, ...]
    ) -> Graphs:
        build = _make_builder(partition, num_outputs, static_inputs, {})
        graph = build(None)
        tensors = [get_tensor(node) for node in graph.forward.graph.nodes]
        if not all(tensor is None or is_static(tensor) for tensor in tensors):
            return graph.forward, graph.backward
        cut_cost = find_nominal_cost(links, graph) if is_distributed() else None
        cost = measure_cost(config, links, graph)
        options = build_options(config, cost, cut_cost=cut_cost)
        ran = graph if plan.cut is None else build(plan.cut)
        profile, before = passes.calibrate(ran, plan, clocks, options)
        calibrated = replace(options, cost=replace(options.cost, profile=profile))
        _, after = passes.choose_partition(graph, calibrated, build)
        on_reviewed(Review(profile, before, after))
        return graph.forward, graph.backward

    return OffloadPartitioner(choose, "fxoffload review")


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
        host_bytes=config.host_bytes or 0,
        min_bytes=config.min_storage_bytes,
        max_inflight_bytes=config.inflight_bytes,
        fuses=config.compiler == "inductor",
    )


def reserve(store: str, plan: Plan) -> None:
    """Make sure that `store` can hold what one step by `plan` moves; StoreFull otherwise."""
    needed: dict[str, int] = {}
    for value, decision in plan.offloads:
        needed[decision.tier] = needed.get(decision.tier, 0) + value.nbytes
    for tier, nbytes in needed.items():
        runtime.find_store(store).reserve(nbytes, tier)


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
    """`plan`, which moves nothing, in torch's own order: what has no op of ours costs nothing.

    Where what is hoisted had to be for the budget, it stays.
    """
    hoisted = passes.find_order(graph)
    passes.restore_order(graph, order)
    with suppress(BudgetError):
        found = passes.make_plan(graph, options)
        if not found.offloads:
            return replace(found, cut=plan.cut)
    passes.restore_order(graph, hoisted)
    return plan


def _make_builder(
    partition: PartitionFunction,
    num_outputs: int,
    static_inputs: tuple[int, ...],
    orders: dict[fx.GraphModule, passes.Order],
) -> Callable[[Cut], TrainingGraph]:
    """What partitions, hoists, and notes in `orders` by forward how torch had it."""

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
