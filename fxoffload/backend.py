"""The backend: joins options, store, planning and compiler."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from fxoffload import replanning, runtime, torch_internals
from fxoffload.config import OffloadConfig
from fxoffload.errors import OffloadError
from fxoffload.ops import Clocks
from fxoffload.plan_cache import find_plan_path, hash_graph, keep_plan, recall_plan, write_whole
from fxoffload.planned_sizes import SizedGraph, find_planned_sizes, warn_of_uncounted
from fxoffload.planner.graph_model import GraphModel
from fxoffload.planner.plan import Plan
from fxoffload.planning import Review, build_partitioner, build_reviewer, hash_sources, reserve
from fxoffload.profile import Profile
from fxoffload.replanning import ReplannedGraph
from fxoffload.schedule import Schedule
from fxoffload.step_schedules import ScheduledGraph, follow_schedules, follows_schedules
from fxoffload.torch_internals import DynamoGraph

log = logging.getLogger(__name__)

_compiled: list[bool] = []  # Of each graph that was compiled: whether something moves.


@dataclass(frozen=True, slots=True)
class GraphCounts:
    """How many graphs this process compiled with this backend, and of how many something may move.

    A graph that is compiled again, for other sizes or by a new plan, counts again.
    """

    compiled: int
    moving: int

    def __str__(self) -> str:
        return f"{self.compiled} graph(s) compiled, {self.moving} of them move values"


def graph_counts() -> GraphCounts:
    """What torch.compile has handed to this backend in this process; no reset changes it.

    `compiled == 0` behind a step says that torch found no graph in what was to be compiled.
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

    Else each module that is compiled by itself would compile the code that it shares with others
    once more, up to torch's limit on that, and then run eagerly.
    """

    config: OffloadConfig

    @property
    def __name__(self) -> str:
        """What torch calls the backend in messages."""
        return "fxoffload"

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile one Dynamo graph. Raises as `backend`."""
        try:
            return compile_graph(gm, example_inputs, self.config)
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

    dynamic, fullgraph: as in torch.compile. mode, options: fields of OffloadConfig.
    Raises ConfigError for an option or a directory that cannot work.
    """
    config = OffloadConfig.from_options(options, mode=mode)
    open_store(config)
    # torch.compile takes mode or options, not both, unless the backend already carries them.
    bound = BoundBackend(config)
    return torch.compile(model, backend=bound, dynamic=dynamic, fullgraph=fullgraph)


def schedules() -> tuple[Schedule, ...]:
    """The schedules of the steps that this thread has run under a budget in bytes, latest first.

    There is one for each program: another number of microbatches, for example, is another one.
    `print` one for what it moves and what it predicts.
    """
    return tuple(runtime.find_schedules())


def replan() -> int:
    """Let each graph be planned anew at its next call by what its steps took; how many there are.

    In a single process this happens by itself. Ranks of torch.distributed must not decide
    each for itself: they all call this, once, after as many steps (four or more), and plan by the
    mean of what they measured. A collective call there.
    """
    recorders = runtime.find_recorders()
    own = {key: clocks for key, it in recorders.items() if (clocks := it.find_clocks()) is not None}
    agreed = replanning.agree(own)
    for key, clocks in agreed.items():
        recorders[key].agreed = clocks
    return len(agreed)


@dataclass(frozen=True, slots=True)
class _Job:
    """What the compilation of one Dynamo graph depends on beside the graph.

    key: under what the runtime knows the graph: this one on this machine under these options.
    """

    config: OffloadConfig
    store: str
    key: str

    def plan_path(self, gm: fx.GraphModule, inputs: Sequence[Any], profile: Profile | None) -> Path:
        """Of the plan beside torch's compiled graphs."""
        folder = torch_internals.find_cache_folder() / "fxoffload"
        identity = build_partitioner(
            self.config,
            self.store,
            key=self.key,
            profile=profile,
            on_modelled=_ignore if self.is_scheduled else None,
        ).identity
        return find_plan_path(folder, gm, inputs, identity)

    def compile(
        self, gm: fx.GraphModule, inputs: Sequence[Any], profile: Profile | None
    ) -> tuple[Callable[..., Any], Plan | None]:
        """The compiled graph and its plan; None where nothing is saved, or nothing was asked."""
        # Before the compiler, which may replace symbols by numbers.
        sizes = find_planned_sizes(inputs)
        compiled, plan = self._compile(gm, inputs, profile)
        moves = plan is not None and bool(plan.offloads)
        _compiled.append(moves or follows_schedules(self.key))
        if plan is not None and self.config.budget_bytes is not None:
            warn_of_uncounted(plan)
            if sizes:
                compiled = SizedGraph(compiled, sizes, plan, self.config.budget_bytes)
        return compiled, plan

    def _compile(
        self, gm: fx.GraphModule, inputs: Sequence[Any], profile: Profile | None
    ) -> tuple[Callable[..., Any], Plan | None]:
        plans: list[Plan] = []
        models: list[GraphModel] = []
        partitioner = build_partitioner(
            self.config,
            self.store,
            key=self.key,
            profile=profile,
            on_transformed=lambda graph, plan: plans.append(plan),
            on_modelled=models.append if self.is_scheduled else None,
        )
        if self.config.compiler == "eager":
            compiled = torch_internals.compile_with_aot(gm, inputs, partitioner)
            self._follow_schedules(inputs, models)
            return compiled, plans[0] if plans else None
        path = self.plan_path(gm, inputs, profile)
        compiled = torch_internals.compile_with_inductor(
            gm, inputs, partitioner, self.config.inductor_options
        )
        if plans:
            keep_plan(path, plans[0], models[0] if models else None)
            self._follow_schedules(inputs, models)
            return compiled, plans[0]
        found = recall_plan(path) if self.config.enabled else None
        if found is None:
            return compiled, None
        plan, model = found
        log.info("compiled before, from torch's cache: %s", plan)
        reserve(self.store, plan)
        self._follow_schedules(inputs, [] if model is None else [model])
        return compiled, plan

    @property
    def is_scheduled(self) -> bool:
        """Whether schedules of whole steps decide what moves: they keep a budget in bytes."""
        return self.config.enabled and self.config.budget_bytes is not None

    def _follow_schedules(self, inputs: Sequence[Any], models: Sequence[GraphModel]) -> None:
        for model in models:
            device = next(x.device for x in inputs if isinstance(x, torch.Tensor))
            follow_schedules(self.key, ScheduledGraph(model, self.config, device))

    def review(
        self, graph: DynamoGraph, inputs: Sequence[Any], plan: Plan, clocks: Clocks
    ) -> Review | None:
        """What `plan` led to, and what is planned by that. No code is generated.

        None where torch traces the graph with symbolic sizes this time.
        """
        found: list[Review] = []
        reviewer = build_reviewer(self.config, plan, clocks, found.append)
        with graph.compiling(inputs) as gm:
            if self.config.compiler == "eager":
                torch_internals.compile_with_aot(gm, inputs, reviewer)
            else:
                torch_internals.trace_with_inductor(
                    gm, inputs, reviewer, self.config.inductor_options
                )
        return found[0] if found else None


def compile_graph(
    gm: fx.GraphModule, example_inputs: Sequence[Any], config: OffloadConfig
) -> Callable[..., Any]:
    """Compile `gm` with the compiler that `config` names, its saved values moved by plan."""
    store = open_store(config)
    # One profile for a graph on a machine, whatever the options; one key for each plan of it.
    name = hash_graph(gm, example_inputs, _describe_machine(example_inputs, config))
    job = _Job(config, store, f"{name[:16]} {config.key}")
    replans = config.enabled and config.replan and not job.is_scheduled
    graph = torch_internals.keep_dynamo_graph(gm) if replans else None
    if graph is None:
        return job.compile(gm, example_inputs, None)[0]
    profile_path = runtime.cache_path().parent / "profiles" / f"{name}.json"
    profile = Profile.recall(profile_path)
    # A measurement that did not pay: the graphs of before are in torch's cache.
    settled = job.plan_path(gm, example_inputs, None).with_suffix(".settled")
    if profile is not None and _read(settled) == profile.digest:
        return job.compile(gm, example_inputs, None)[0]
    start = time.perf_counter()
    compiled, plan = job.compile(gm, example_inputs, profile)
    compile_seconds = time.perf_counter() - start
    if profile is not None or plan is None or not plan.offloads:
        return compiled
    recorder = runtime.start_recorder(job.key)

    def find_clocks() -> tuple[Clocks, bool] | None:
        if replanning.is_distributed() or recorder.agreed is not None:
            return None if recorder.agreed is None else (recorder.agreed, True)
        clocks = recorder.find_clocks()
        return None if clocks is None else (clocks, False)

    def compile_again(
        inputs: Sequence[Any], clocks: Clocks, compile_seconds: float
    ) -> Callable[..., Any] | None:
        runtime.stop_recorder(job.key)
        if len(runtime.find_threads()) > 1:
            # While torch traces a graph, what it has compiled can be called in no other thread.
            log.info("measured, and the plan stays: several threads run steps")
            return None
        review = job.review(graph, inputs, plan, clocks)
        if review is None:
            log.info("measured, and the plan stays: torch would compile for symbolic sizes now")
            return None
        review.profile.keep(profile_path)
        lowers = config.memory_budget is None
        if not replanning.pays(review.before, review.after, compile_seconds, lowers_peak=lowers):
            log.info(
                "measured, and the plan stays: it takes %s", replanning.describe(review.before)
            )
            write_whole(settled, review.profile.digest.encode())
            return None
        log.info("measured, and planned anew: the plan took %s", replanning.describe(review.before))
        replanning.announce_compilation()
        with graph.compiling(inputs) as gm:
            return job.compile(gm, inputs, review.profile)[0]

    return ReplannedGraph(compiled, find_clocks, compile_again, compile_seconds=compile_seconds)


def open_store(config: OffloadConfig) -> str:
    """Open the store of `config`, or find it open already; returns its key."""
    if not config.enabled:
        return ""
    return runtime.register_store(
        config,
        keeps_graph=torch_internals.keeps_graph,
        is_shared=torch_internals.is_shared,
        make_counter=torch_internals.make_version_counter,
    )


def _describe_machine(inputs: Sequence[Any], config: OffloadConfig) -> str:
    devices = {x.device for x in inputs if isinstance(x, torch.Tensor)}
    names = " ".join(sorted(map(runtime.describe_device, devices)))
    return f"{hash_sources()} {names} {config.compiler} {config.mode} {config.inductor}"


def _ignore(model: GraphModel) -> None:
    """Stands for a callback where nothing is compiled."""


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
