"""From options to a partitioner: what the passes must know of this machine, and their plan."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import fx

from fxoffload import passes, runtime, torch_internals
from fxoffload.config import OffloadConfig
from fxoffload.cost import CostModel, DeviceSpeed, counts_flops
from fxoffload.errors import BudgetError
from fxoffload.graph import TrainingGraph, get_tensor, is_static
from fxoffload.ops import Clocks
from fxoffload.passes import PassOptions
from fxoffload.planner.link import Link
from fxoffload.planner.plan import Cut, Plan
from fxoffload.planner.simulation import Simulation
from fxoffload.profile import Profile
from fxoffload.replanning import is_distributed
from fxoffload.torch_internals import Graphs, OffloadPartitioner, PartitionFunction

log = logging.getLogger(__name__)

# The delay of one transfer is that of a worker thread which waits for the interpreter lock: on a
# CPU while a compiled kernel runs; on a GPU, whose kernels are only started, while Python does.
TRANSFER_LATENCY_SECONDS = 0.02
GPU_TRANSFER_LATENCY_SECONDS = 0.002
# No thread of ours has a part in copies between a GPU and host memory.
GPU_COPY_LATENCY_SECONDS = 0.0002

# Vectors of bools are converted one by one. Source: VecMask in ATen/cpu/vec/vec_mask.h; core
# seconds by Inductor's kernel profile of a T5 with AVX-512, whose relu stores 8.4 million of them.
MASK_STORE_CORE_SECONDS = 1.6e-8
MASK_LOAD_CORE_SECONDS = 4e-9

# The ranks of one job choose their cuts by these numbers: a cut decides which collectives are
# computed again, so all ranks must choose the same one, and what each of them measures differs.
# They are those of one common GPU or CPU with one drive. What moves, a rank decides by its own.
_NOMINAL_SPEEDS = {"cpu": DeviceSpeed(5e11, 5e10), "cuda": DeviceSpeed(3e14, 2e12)}
_NOMINAL_LINKS = {
    "nvme": Link(2e9, 3e9, TRANSFER_LATENCY_SECONDS),
    "host": Link(2e10, 2e10, GPU_TRANSFER_LATENCY_SECONDS),
}

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
    on_partitioned: Callable[[TrainingGraph], None] | None = None,
) -> OffloadPartitioner:
    """A partitioner that plans and rewrites.

    store: key of the store that must hold what moves; "" where nothing will run. key: under what
    the runtime knows the graph, its machine included. profile: what its nodes took before. cost:
    of other hardware than this machine. on_partitioned sees the chosen partition before it is
    rewritten, on_transformed the result.
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
    identity = f"fxoffload {hash_sources()} {config.key} {key} {sorted(links.items())} {cost}"
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


def measure_links(config: OffloadConfig) -> dict[str, Link]:
    """Bandwidth and latency from host memory to each tier.

    The same in every process, as compile caches need it.
    """
    tiers = {"nvme": runtime.choose_engine(config).bandwidth}
    if config.host_bytes and config.ioengine != "memory":
        tiers["host"] = runtime.probe_memory()
    return {tier: Link(*speed, TRANSFER_LATENCY_SECONDS) for tier, speed in tiers.items()}


def measure_cost(
    config: OffloadConfig,
    links: Mapping[str, Link],
    graph: TrainingGraph,
    profile: Profile | None = None,
) -> CostModel:
    """What the device of `graph` sustains, and what transfers over `links` take from it.

    The speed is that at the dtype of the first matrix product. Measured once on a machine, so that
    every process plans with the same numbers. Raises as measure_links.
    """
    device, dtype = _find_device(graph)
    with torch_internals.outside_of_tracing():
        speed = DeviceSpeed(*runtime.recall_speed(device, dtype), *_find_mask_seconds(device))
        # The cores that transfers take from are those of the graph; the host tier's no others.
        if device.type == "cpu":
            taken = runtime.recall_contention(config).mean
            links = {
                tier: replace(link, compute_seconds_per_byte=taken) for tier, link in links.items()
            }
        elif device.type == "cuda":
            links = _go_through(links, config, runtime.recall_exchange(device))
    return CostModel(links, speed, profile)


def find_nominal_cost(links: Iterable[str], graph: TrainingGraph) -> CostModel:
    """Numbers that nobody measured: equal for equal graphs, whatever the machine.

    links: the tiers that there are.
    """
    device, _ = _find_device(graph)
    speed = _NOMINAL_SPEEDS.get(device.type, _NOMINAL_SPEEDS["cpu"])
    return CostModel({tier: _NOMINAL_LINKS[tier] for tier in links}, speed)


def _find_device(graph: TrainingGraph) -> tuple[torch.device, torch.dtype]:
    """Where the graph computes, and the dtype of its first matrix product."""
    device, dtype = torch.device("cpu"), torch.float32
    for node in graph.forward.graph.nodes:
        tensor = get_tensor(node)
        if tensor is not None and tensor.is_floating_point():
            device = tensor.device
            if counts_flops(node):
                return device, tensor.dtype
    return device, dtype


def _find_mask_seconds(device: torch.device) -> tuple[float, float]:
    """Of one bool that a fused loop stores, and of one that it loads; see DeviceSpeed."""
    if device.type != "cpu":
        return 0.0, 0.0
    threads = torch.get_num_threads()
    return MASK_STORE_CORE_SECONDS / threads, MASK_LOAD_CORE_SECONDS / threads


def _go_through(
    links: Mapping[str, Link], config: OffloadConfig, exchange: runtime.Bandwidth
) -> dict[str, Link]:
    """`links` from a GPU, whose own copies fill host memory; a drive is no faster than they are."""
    found: dict[str, Link] = {}
    for tier, link in links.items():
        if tier == "host" or (config.ioengine == "memory" and not config.checksum):
            found[tier] = Link(*exchange, GPU_COPY_LATENCY_SECONDS)
        else:
            write = min(link.write_bytes_per_second, exchange.write)
            read = min(link.read_bytes_per_second, exchange.read)
            found[tier] = Link(write, read, GPU_TRANSFER_LATENCY_SECONDS)
    return found


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
