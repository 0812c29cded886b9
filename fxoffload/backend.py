"""The backend: joins options, store, planning and compiler."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import fx

from fxoffload import machine, runtime, torch_internals
from fxoffload.artifacts import emit_plan
from fxoffload.config import OffloadConfig
from fxoffload.cut_review import review_cuts
from fxoffload.cuts import GraphSource, RecutGraph
from fxoffload.errors import BudgetError, OffloadError
from fxoffload.memory_dump import explain_failure, watch_devices
from fxoffload.passes import Transformed
from fxoffload.passes.refusals import CONSTANT, STATIC_INPUT
from fxoffload.plan_cache import hash_graph, keep_cut, keep_plan, recall_cut, recall_plan
from fxoffload.planned_sizes import has_symbols, warn_of_uncounted
from fxoffload.planner.graph_model import GraphModel
from fxoffload.planner.plan import Cut, Plan
from fxoffload.planning import (
    build_partitioner,
    build_tracer,
    find_identity,
    may_recut,
    reserve,
)
from fxoffload.schedule import Schedule
from fxoffload.sizes import MIB
from fxoffload.step_begin import begin_with_forwards
from fxoffload.step_schedules import ScheduledGraph, follow_schedules
from fxoffload.torch_internals import DynamoGraph

log = logging.getLogger(__name__)

# A graph that saves this much is named in a warning if nothing of it may move.
MUCH_BYTES = 64 * MIB

_compiled: list[bool] = []  # For each compiled graph: whether it has values that may move.


@dataclass(frozen=True, slots=True)
class GraphCounts:
    """The number of graphs that this process has compiled, and of those with values that may move.

    A graph that is compiled again, for other sizes, counts again.
    """

    compiled: int
    moving: int

    def __str__(self) -> str:
        return f"{self.compiled} graph(s) compiled, {self.moving} of them move values"


def graph_counts() -> GraphCounts:
    """Count the graphs that torch.compile has passed to this backend; the counts are never reset.

    `compiled == 0` after a step means that torch found no graph in the code.
    """
    return GraphCounts(len(_compiled), sum(_compiled))


def backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: dict[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile one Dynamo graph: `torch.compile(model, backend="fxoffload", options={...})`.

    options: fields of OffloadConfig. mode: one of them, as torch.compile passes it.
    Raises ConfigError for an option that cannot work, StoreFull for a disk that is too small.
    """
    try:
        config = OffloadConfig.from_options(options, mode=mode)
    except OffloadError as error:
        raise torch_internals.as_user_error(error) from None
    return BoundBackend(config)(gm, example_inputs)


@dataclass(frozen=True, slots=True)
class BoundBackend:
    """The backend with its options: to torch, equal options are one backend.

    Otherwise torch would compile the code that modules share once for each module, up to its limit
    of recompilations, and then run it eagerly.
    """

    config: OffloadConfig

    @property
    def __name__(self) -> str:
        """What torch calls the backend in messages."""
        return "fxoffload"

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile one Dynamo graph. Raises as `backend`."""
        try:
            compiled = compile_graph(gm, example_inputs, self.config)
            return _note_calls(compiled) if self.config.enabled else compiled
        except BudgetError as error:
            raise torch_internals.as_user_error(explain_failure(error, self.config)) from None
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

    A step begins with a forward of `model`, also where torch runs a part of it uncompiled.
    dynamic, fullgraph: as in torch.compile. mode, options: fields of OffloadConfig.
    Raises ConfigError for an option or a directory that cannot work.
    """
    config = OffloadConfig.from_options(options, mode=mode)
    open_store(config)
    begin_with_forwards(model)
    # torch.compile takes mode or options, not both, unless the backend already carries them.
    bound = BoundBackend(config)
    return torch.compile(model, backend=bound, dynamic=dynamic, fullgraph=fullgraph)


def schedules() -> tuple[Schedule, ...]:
    """The schedules of the steps that this thread has run, latest first.

    There is one for each program: another number of microbatches, for example, is another one.
    `print` one for what it moves and what it predicts.
    """
    return tuple(record.schedule for record in runtime.find_programs())


def compile_graph(
    gm: fx.GraphModule, example_inputs: Sequence[Any], config: OffloadConfig
) -> Callable[..., Any]:
    """Compile `gm` with the compiler that `config` names, with ops for the values it saves.

    The cut is the one that an earlier process found to be best for whole steps. If there is none,
    it is the best one for this graph alone, until steps have shown their program (see cuts.py).
    """
    device = machine.find_compute_device(example_inputs)
    store = open_store(config, machine.find_default_host_bytes(config, device))
    name = hash_graph(gm, example_inputs, find_identity(config))
    cut = recall_cut(_find_path(name, "cut")) if config.compiler == "inductor" else "best"
    graph = None
    if cut == "best" and may_recut(config):
        graph = torch_internals.keep_dynamo_graph(gm)
    if graph is None:
        return _compile_cut(gm, example_inputs, config, store, cut)[0]

    def compile_again(inputs: Sequence[Any], cut: Cut) -> Callable[..., Any]:
        with graph.compiling(inputs) as gm:
            compiled, _ = _compile_cut(gm, inputs, config, store, cut)
        if config.compiler == "inductor":
            keep_cut(_find_path(name, "cut"), cut)
        return compiled

    source = GraphSource(partial(_trace_cuts, graph, config), compile_again)
    recut = RecutGraph(review_cuts, source)
    recut.compiled, found = _compile_cut(gm, example_inputs, config, store, cut, recut)
    if found is None or found.model is None:
        return recut.compiled
    recut.cut = found.plan.cut
    return recut


def _note_calls(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """`compiled`, whose call begins a step if none is in progress, even if it saves nothing."""

    def run(*args: Any) -> Any:
        runtime.note_forward()
        return compiled(*args)

    return run


def _compile_cut(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    config: OffloadConfig,
    store: str,
    cut: Cut | Literal["best"],
    recut: RecutGraph | None = None,
) -> tuple[Callable[..., Any], Transformed | None]:
    """Compile `gm` at `cut` and let it follow schedules, see _compile; recut: may change `cut`."""
    key = hash_graph(gm, inputs, find_identity(config, cut))
    # Before the compiler, which may replace symbols by numbers.
    is_symbolic = has_symbols(inputs)
    compiled, found = _compile(gm, inputs, config, store, key, cut)
    model = None if found is None else found.model
    _compiled.append(model is not None)
    if found is not None and model is None:
        _warn_of_unmoved(found.plan)
    if model is not None:
        where = config, machine.find_compute_device(inputs)
        with torch_internals.outside_of_tracing():
            links, limit = machine.find_links(*where), machine.find_device_limit(*where)
        explain = partial(explain_failure, config=config)
        graph = ScheduledGraph(model, config, links, limit, is_symbolic, recut)
        follow_schedules(key, graph, explain)
        watch_devices()
    if found is not None and config.budget_bytes is not None:
        warn_of_uncounted(found.plan)
    return compiled, found


def _compile(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    config: OffloadConfig,
    store: str,
    key: str,
    cut: Cut | Literal["best"],
) -> tuple[Callable[..., Any], Transformed | None]:
    """The compiled graph, with its plan and model; None for these if it saves or plans nothing.

    key: names the graph for the runtime and for caches on disk.
    """
    found: list[Transformed] = []
    partitioner = build_partitioner(
        config, store, key=key, cut=cut, on_transformed=lambda graph, it: found.append(it)
    )
    if config.compiler == "eager":
        compiled = torch_internals.compile_with_aot(gm, inputs, partitioner)
        return compiled, found[0] if found else None
    path = _find_path(key, "json")
    compiled = torch_internals.compile_with_inductor(
        gm, inputs, partitioner, config.inductor_options
    )
    if found:
        keep_plan(path, found[0])
        return compiled, found[0]
    # torch did not partition: the graph saves nothing, or its code is in torch's caches.
    recalled = recall_plan(path) if config.enabled else None
    if recalled is not None:
        log.info("compiled before, from torch's cache: %s", recalled.plan)
        emit_plan(recalled.plan)
        reserve(store, recalled.plan)
    return compiled, recalled


def _trace_cuts(graph: DynamoGraph, config: OffloadConfig) -> Mapping[Cut, GraphModel]:
    """The models of a graph at the cuts that it may have; no code is generated."""
    found: list[Mapping[Cut, GraphModel]] = []
    tracer = build_tracer(config, found.append)
    with graph.compiling(graph.fakes) as gm:
        if config.compiler == "eager":
            torch_internals.compile_with_aot(gm, graph.fakes, tracer)
        else:
            torch_internals.trace_with_inductor(gm, graph.fakes, tracer, config.inductor_options)
    return found[0]


def _find_path(name: str, kind: str) -> Path:
    """The file for the plan or the cut of a graph, beside torch's compiled graphs."""
    return torch_internals.find_cache_folder() / "fxoffload" / f"{name}.{kind}"


def _warn_of_unmoved(plan: Plan) -> None:
    """Warn, with the reasons, of a graph that saves much and of which nothing may move."""
    kept = {
        reason: nbytes
        for reason, nbytes in plan.kept_bytes_by_reason().items()
        if reason not in (STATIC_INPUT, CONSTANT)
    }
    total = sum(kept.values())
    if total >= MUCH_BYTES:
        reasons = "; ".join(f"{nbytes / MIB:.1f} MiB: {reason}" for reason, nbytes in kept.items())
        log.warning(
            "nothing may move of the %.1f MiB that a graph saves beside parameters: %s",
            total / MIB,
            reasons,
        )


def open_store(config: OffloadConfig, host_bytes: int | None = None) -> str:
    """Open the store of `config` unless it is open, see register_store; returns its key."""
    if not config.enabled:
        return ""
    return runtime.register_store(
        config,
        host_bytes=host_bytes,
        keeps_graph=torch_internals.keeps_graph,
        is_shared=torch_internals.is_shared,
        make_counter=torch_internals.make_version_counter,
    )
