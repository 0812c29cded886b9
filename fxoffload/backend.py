"""The backend: joins options, passes, store and compiler. The one module that sees all of them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fxoffload import passes, runtime, torch_internals
from fxoffload.config import OffloadConfig
from fxoffload.cost import CostModel, DeviceSpeed, Link, counts_flops
from fxoffload.errors import OffloadError
from fxoffload.graph import TrainingGraph, get_tensor
from fxoffload.passes import PassOptions
from fxoffload.plan import Plan
from fxoffload.plan_cache import find_plan_path, keep_plan, recall_plan
from fxoffload.torch_internals import OffloadPartitioner, PartitionFunction

log = logging.getLogger(__name__)

# Memory copies of the host tier; and the delay of one transfer, which is that of a worker thread
# that waits for the interpreter lock while a compiled kernel runs.
HOST_LINK = Link(4e9, 4e9, latency_seconds=0.02)
TRANSFER_LATENCY_SECONDS = 0.02

TransformCallback = Callable[[TrainingGraph, Plan], None]


def backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: dict[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile one Dynamo graph: `torch.compile(model, backend="fxoffload", options={...})`.

    options: fields of OffloadConfig. mode: as in torch.compile, for Inductor.
    Raises ConfigError for an option that cannot work, StoreFull for a disk that is too small.
    """
    try:
        return compile_graph(gm, example_inputs, OffloadConfig.from_options(options), mode=mode)
    except OffloadError as error:
        raise torch_internals.as_user_error(error) from None


def compile(
    model: Callable[..., Any],
    *,
    mode: str | None = None,
    dynamic: bool | None = None,
    fullgraph: bool = False,
    **options: Any,
) -> Any:
    """`torch.compile(model, backend="fxoffload")` with `options` checked at once.

    mode, dynamic, fullgraph: as in torch.compile. options: fields of OffloadConfig.
    Raises ConfigError for an option or a directory that cannot work.
    """
    open_store(OffloadConfig.from_options(options))
    # torch.compile takes mode or options, not both, unless the backend already carries them.
    bound = partial(backend, options=options, mode=mode)
    return torch.compile(model, backend=bound, dynamic=dynamic, fullgraph=fullgraph)


def compile_graph(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    config: OffloadConfig,
    *,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile `gm` with the compiler that `config` names, its saved values moved by plan."""
    store = open_store(config)
    plans: list[Plan] = []
    partitioner = build_partitioner(
        config, store, on_transformed=lambda graph, plan: plans.append(plan)
    )
    if config.compiler == "eager":
        return torch_internals.compile_with_aot(gm, example_inputs, partitioner)
    folder = torch_internals.find_cache_folder() / "fxoffload"
    path = find_plan_path(folder, gm, example_inputs, partitioner.identity)
    compiled = torch_internals.compile_with_inductor(gm, example_inputs, partitioner, mode=mode)
    if plans:
        keep_plan(path, plans[0])
    elif config.enabled and (plan := recall_plan(path)) is not None:
        log.info("compiled before, from torch's cache: %s", plan)
        _reserve(store, plan)
    return compiled


def open_store(config: OffloadConfig) -> str:
    """Open the store of `config`, or find it open already; returns its key."""
    if not config.enabled:
        return ""
    return runtime.register_store(config, keeps_graph=torch_internals.keeps_graph)


def build_partitioner(
    config: OffloadConfig,
    store: str,
    *,
    cost: CostModel | None = None,
    on_transformed: TransformCallback | None = None,
    on_partitioned: Callable[[TrainingGraph], None] | None = None,
) -> OffloadPartitioner:
    """A partitioner that plans and rewrites.

    store: key of the store that must hold what moves; "" where nothing will run. cost: of other
    hardware than this machine. on_partitioned sees the chosen partition before it is rewritten,
    on_transformed the result.
    """
    links = measure_links(config) if config.enabled and cost is None else {}

    def choose(
        partition: PartitionFunction, num_outputs: int, static_inputs: tuple[int, ...]
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        def build(share: float | None) -> TrainingGraph:
            forward, backward = partition(share)
            inputs = forward.graph.find_nodes(op="placeholder")
            names = frozenset(inputs[index].name for index in static_inputs if index < len(inputs))
            graph = TrainingGraph(forward, backward, num_outputs, names)
            # Also where nothing is moved: the parity reference must be the same graphs.
            passes.hoist_saved(graph)
            return graph

        graph = build(None)
        if config.enabled:
            options = build_options(
                config, cost or CostModel(links=links, speed=measure_speed(graph)), store
            )
            plan = passes.transform_graph(
                graph, options, repartition=build, before_rewrite=on_partitioned
            )
            log.info("%s", plan)
            if store:
                _reserve(store, plan)
            if on_transformed is not None:
                on_transformed(graph, plan)
        return graph.forward, graph.backward

    # The speed of the device follows from the graph, which is in every key already.
    identity = f"fxoffload {hash_sources()} {config.key} {sorted(links.items())} {cost}"
    return OffloadPartitioner(choose, identity)


def build_options(config: OffloadConfig, cost: CostModel, store: str) -> PassOptions:
    """What the passes need to know to plan a graph under `config`."""
    return PassOptions(
        cost=cost,
        store=store,
        budget_bytes="min" if config.memory_budget == "min" else config.budget_bytes,
        host_bytes=config.host_bytes or 0,
        min_bytes=config.min_storage_bytes,
        max_inflight_bytes=config.inflight_bytes,
        fuses=config.compiler == "inductor",
    )


def measure_links(config: OffloadConfig) -> dict[str, Link]:
    """Bandwidth and latency to each tier; the same in every process, as compile caches need it."""
    bandwidth = runtime.choose_engine(config).bandwidth
    links = {"nvme": Link(bandwidth.write, bandwidth.read, TRANSFER_LATENCY_SECONDS)}
    if config.host_bytes and config.ioengine != "memory":
        links["host"] = HOST_LINK
    return links


def measure_speed(graph: TrainingGraph) -> DeviceSpeed:
    """What the device of `graph` sustains, at the dtype of its first matrix product.

    Measured once on a machine, so that every process plans with the same numbers.
    """
    device, dtype = torch.device("cpu"), torch.float32
    for node in graph.forward.graph.nodes:
        tensor = get_tensor(node)
        if tensor is not None and tensor.is_floating_point():
            device = tensor.device
            if counts_flops(node):
                dtype = tensor.dtype
                break
    with torch_internals.outside_of_tracing():
        return DeviceSpeed(*runtime.recall_speed(device, dtype))


@cache
def hash_sources() -> str:
    """A digest of this package's sources: a changed pass must not meet a cached graph."""
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, Path(passes.__file__).parent):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _reserve(store: str, plan: Plan) -> None:
    needed: dict[str, int] = {}
    for value, decision in plan.offloads:
        needed[decision.tier] = needed.get(decision.tier, 0) + value.nbytes
    for tier, nbytes in needed.items():
        runtime.find_store(store).reserve(nbytes, tier)
