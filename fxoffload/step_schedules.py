"""Make the schedules of this process: the runtime calls this when a step has shown its program."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from fxoffload import runtime
from fxoffload.artifacts import emit_schedule
from fxoffload.config import OffloadConfig
from fxoffload.cuts import RecutGraph
from fxoffload.errors import BudgetError
from fxoffload.holders import Holder
from fxoffload.machine import find_host_bytes
from fxoffload.planner.bound import Bound, find_bound
from fxoffload.planner.graph_model import GraphModel
from fxoffload.planner.joining import join_step
from fxoffload.planner.link import Link
from fxoffload.planner.plan import Origin
from fxoffload.planner.program import make_schedule
from fxoffload.schedule import (
    Half,
    HalfMeasurement,
    Program,
    ProgramRecord,
    Schedule,
    StepMeasurement,
    TierFlow,
)
from fxoffload.sizes import MIB, format_bytes

log = logging.getLogger(__name__)

# By how much what was measured may exceed a budget without an error: Python's own objects, and what
# other threads hold for a moment, are part of it.
TOLERANCE = 0.02
NOISE_BYTES = 2**20
# The share of a device's memory that is left for fragmentation.
HEADROOM = 0.02


@dataclass(frozen=True, slots=True)
class ScheduledGraph:
    """A compiled graph whose ops follow schedules.

    links: as transfers from its device see them. device_bytes: what everything on that device may
    take; None is no limit. is_symbolic: whether sizes of its inputs are symbols. recut: what may
    still compile the graph at another cut.
    """

    model: GraphModel
    config: OffloadConfig
    links: Mapping[str, Link]
    device_bytes: int | None = None
    is_symbolic: bool = False
    recut: RecutGraph | None = field(default=None, compare=False)

    @property
    def sizes(self) -> dict[str, int]:
        """By name, the modelled bytes of what may move; empty without symbols or a limit."""
        if not self.is_symbolic or not self.config.is_limited:
            return {}
        return {value.name: value.nbytes for value in self.model.values if value.has_ops}


@dataclass(frozen=True, slots=True)
class ScheduledStep:
    """A step with a schedule, and the graphs that its program names."""

    record: ProgramRecord
    graphs: Mapping[str, ScheduledGraph]

    @property
    def config(self) -> OffloadConfig:
        """The options of its first graph."""
        return next(iter(self.graphs.values())).config

    def find_links(self) -> dict[str, Link]:
        """Links by tier, with the speeds that its schedule counts on."""
        first = next(iter(self.graphs.values()))
        return _correct_links(first, self.record.assumed)

    def describe_engine(self, ioengine: str) -> str:
        """`ioengine`, and the size of the host tier if there is one."""
        host_bytes = find_host_bytes(self.config, self.find_links())
        return f"{ioengine}; host tier of {format_bytes(host_bytes)}" if host_bytes else ioengine


_graphs: dict[str, ScheduledGraph] = {}


def find_steps() -> list[ScheduledStep]:
    """The steps that this thread runs by a schedule, the latest first."""
    return [
        ScheduledStep(record, {half.graph: _graphs[half.graph] for half in record.schedule.program})
        for record in runtime.find_programs()
    ]


def find_running() -> tuple[OffloadConfig, tuple[Holder, ...]] | None:
    """The options of a step in progress, and the memory that the values of all such steps take now.

    None if they take no memory, as between steps.
    """
    held = runtime.list_held()
    if not held:
        return None
    origins = {
        (key, value.name): value.origin
        for key in {each.graph for each in held}
        for value in _graphs[key].model.values
    }
    found: list[Holder] = []
    for each in held:
        origin = origins.get((each.graph, each.name), Origin())
        found.append(replace(each, module=origin.module, source=origin.source, op=origin.op))
    return _graphs[held[0].graph].config, tuple(found)


def follow_schedules(
    key: str, graph: ScheduledGraph, explain: Callable[[BudgetError], BudgetError]
) -> None:
    """Let the ops that carry `key` follow the schedules of the steps they belong to.

    What was learned of another graph of this key is forgotten. explain: what is raised in place of
    the error of a step that cannot fit.
    """
    known = _graphs.get(key)
    if known is not None and known.model != graph.model:
        runtime.forget_programs(key)
    _graphs[key] = graph
    limited = graph.config.is_limited
    rules = runtime.GraphRules(schedule_program, explain, is_limited=limited, sizes=graph.sizes)
    runtime.schedule_graph(key, rules)


def schedule_program(program: Program, measured: StepMeasurement) -> Schedule:
    """The schedule of a program, under the lowest budget of its graphs.

    Raises BudgetError where none fits, by more than TOLERANCE and NOISE_BYTES.
    """
    graphs = {half.graph: _graphs[half.graph] for half in program}
    schedule = make_graph_schedule(graphs, program, measured)
    emit_schedule(schedule)
    return schedule


def make_graph_schedule(
    graphs: Mapping[str, ScheduledGraph],
    program: Program,
    measured: StepMeasurement,
) -> Schedule:
    """Like schedule_program, with `graphs` under the names that `program` uses."""
    first = next(iter(graphs.values()))
    links = _correct_links(first, measured)
    halves = measured.halves
    if first.config.stated_hardware is not None:
        halves = [_leave_out_seconds(half, first.config) for half in halves]
    make = partial(
        make_schedule,
        program,
        find_models(graphs, measured),
        halves,
        links,
        owners=measured.owners,
        host_bytes=find_host_bytes(first.config, first.links),
        max_inflight_bytes=first.config.inflight_bytes,
    )
    budget = _find_lowest(each.config for each in graphs.values())
    room = _find_room(graphs.values(), measured.base_bytes)
    if room is not None and budget != "min":
        budget = room if budget is None else min(room, budget)
    if isinstance(budget, int) and measured.excess_bytes:
        # Steps exceed the prediction again; the limit keeps one disturbed step from deciding.
        correction = min(measured.excess_bytes, int(TOLERANCE * budget) + NOISE_BYTES)
        with suppress(BudgetError):
            return replace(make(budget_bytes=max(0, budget - correction)), budget_bytes=budget)
    try:
        return make(budget_bytes=budget)
    except BudgetError as error:
        if error.lowest_peak_bytes > (1.0 + TOLERANCE) * error.budget_bytes + NOISE_BYTES:
            if error.budget_bytes == room:
                raise _explain_room(error, graphs.values(), measured.base_bytes) from None
            raise
        found = replace(make(budget_bytes="min"), budget_bytes=error.budget_bytes)
        log.info("the budget is as low as what can be measured: %s", found)
        return found


def find_models(
    graphs: Mapping[str, ScheduledGraph], measured: StepMeasurement
) -> dict[str, GraphModel]:
    """The model of each graph, resized to the sizes that were measured."""
    return {
        key: each.model.resize(measured.sizes[key]) if key in measured.sizes else each.model
        for key, each in graphs.items()
    }


def predict_step(graphs: Sequence[ScheduledGraph], base_bytes: int | None) -> ScheduledStep:
    """A step in which each graph runs once, scheduled by the seconds of the cost model.

    base_bytes: what is on the device before it; see StepMeasurement. Raises as schedule_program.
    """
    program = _run_once(len(graphs))
    unmeasured = StepMeasurement([HalfMeasurement({})] * len(program), base_bytes=base_bytes)
    named = {str(index): graph for index, graph in enumerate(graphs)}
    schedule = make_graph_schedule(named, program, unmeasured)
    return ScheduledStep(ProgramRecord(schedule, 0, unmeasured), named)


def predict_bound(graphs: Sequence[ScheduledGraph], schedule: Schedule) -> Bound:
    """What no plan of the step of predict_step can get below in the time of `schedule`."""
    first = graphs[0]
    models = {str(index): graph.model for index, graph in enumerate(graphs)}
    unmeasured = [HalfMeasurement({})] * len(schedule.program)
    return find_bound(
        [join_step(schedule.program, models, unmeasured).step],
        first.links,
        within_seconds=schedule.step_seconds,
        budget_bytes=schedule.budget_bytes,
        host_bytes=find_host_bytes(first.config, first.links),
    )


def _leave_out_seconds(half: HalfMeasurement, config: OffloadConfig) -> HalfMeasurement:
    """`half` without seconds, which stated hardware replaces; without a limit, also no bytes."""
    if not config.is_limited:
        return HalfMeasurement({})
    return replace(half, clocks={}, gap_seconds=0.0)


def _run_once(count: int) -> Program:
    forwards = tuple(Half(str(index), index, True) for index in range(count))
    return forwards + tuple(replace(half, forward=False) for half in reversed(forwards))


def _correct_links(graph: ScheduledGraph, measured: StepMeasurement) -> dict[str, Link]:
    """Links by tier, with the speeds that were seen; stated ones stay."""
    if graph.config.stated_hardware is not None:
        return dict(graph.links)
    seen = measured.flows
    price = measured.price
    return {tier: k.correct(seen.get(tier, TierFlow()), price) for tier, k in graph.links.items()}


def _find_lowest(configs: Iterable[OffloadConfig]) -> int | Literal["min"] | None:
    budgets = {"min" if c.memory_budget == "min" else c.budget_bytes for c in configs}
    if "min" in budgets:
        return "min"
    return min((nbytes for nbytes in budgets if isinstance(nbytes, int)), default=None)


def _find_room(graphs: Iterable[ScheduledGraph], base_bytes: int | None) -> int | None:
    """What a limit of the device's memory leaves to the peak of a step; None without a limit."""
    limits = [graph.device_bytes for graph in graphs if graph.device_bytes is not None]
    if not limits or base_bytes is None:
        return None
    return max(0, int((1.0 - HEADROOM) * min(limits)) - base_bytes)


def _explain_room(
    error: BudgetError, graphs: Iterable[ScheduledGraph], base_bytes: int | None
) -> BudgetError:
    """`error` in terms of the device's memory."""
    limit = min(graph.device_bytes for graph in graphs if graph.device_bytes is not None)
    return error.rephrase(
        f"device_memory={limit} ({limit / MIB:.1f} MiB) cannot be kept: "
        f"{(base_bytes or 0) / MIB:.1f} MiB are in use before a step begins (parameters, states of "
        f"optimizers, other programs), and {HEADROOM:.0%} are left for fragmentation. {error}"
    )
