"""Explain: show the plan of each graph of a model, without a training step."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from fxoffload import runtime
from fxoffload.config import OffloadConfig
from fxoffload.directories import check_directory
from fxoffload.errors import ReportError
from fxoffload.graph import TrainingGraph
from fxoffload.inspection.graph_diff import GraphDiff, diff_graphs
from fxoffload.inspection.report import Report, make_report
from fxoffload.inspection.tracing import partition_graphs
from fxoffload.machine import count_held_bytes, find_device, find_device_limit, find_links
from fxoffload.ops import OPS, OpEvent
from fxoffload.passes import Transformed, find_ops
from fxoffload.passes.refusals import CONSTANT, STATIC_INPUT
from fxoffload.planner.bound import Bound
from fxoffload.planner.plan import Plan, SavedValue, describe_cut
from fxoffload.planning import build_partitioner
from fxoffload.schedule import CallValue, Schedule
from fxoffload.sizes import MIB
from fxoffload.step_schedules import (
    ScheduledGraph,
    ScheduledStep,
    predict_bound,
    predict_step,
)
from fxoffload.tables import format_table
from fxoffload.torch_internals import OffloadPartitioner, outside_of_tracing

# A model has hundreds of values that are kept for these reasons, whatever the options: they get one
# row for each reason.
STATIC_REASONS = (STATIC_INPUT, CONSTANT)


@dataclass(frozen=True, slots=True)
class GraphExplanation:
    """One compiled graph: its forward and backward before and after the passes, and its plan.

    plan: that of the graph by itself, by which its partition was chosen. index: of the call in the
    schedule of the step; None where nothing may move.
    """

    forward_before: fx.GraphModule
    backward_before: fx.GraphModule
    forward_after: fx.GraphModule
    backward_after: fx.GraphModule
    plan: Plan
    index: int | None

    def diff(self) -> GraphDiff:
        """What the passes changed in the code of both graphs."""
        before = self.forward_before, self.backward_before
        return diff_graphs(before, (self.forward_after, self.backward_after))


@dataclass(frozen=True, slots=True)
class Explanation:
    """All graphs that one call of a model compiles to; `print` it for the tables and totals.

    graphs: those that save values for a backward. num_compiled: all that torch.compile found,
    inference graphs included. ioengine: the engine that would move the values, and the reason for
    it. step: one in which each graph runs once, as the cost model predicts it; None where nothing
    may move. A running step is scheduled by what is measured of it: see fxoffload.schedules. bound:
    what no schedule of this step that only moves values gets below.
    """

    graphs: tuple[GraphExplanation, ...]
    num_compiled: int
    ioengine: str = ""
    step: ScheduledStep | None = None
    bound: Bound | None = None

    @property
    def schedule(self) -> Schedule | None:
        """That of `step`."""
        return None if self.step is None else self.step.record.schedule

    def report(self) -> Report:
        """What the step is predicted to be, value by value; ReportError where nothing may move."""
        if self.step is None:
            raise ReportError(
                "nothing may move, so that there is no step to report; print the explanation for "
                "the reasons"
            )
        return make_report(self.step, self.ioengine)

    @property
    def saved_bytes(self) -> int:
        """Bytes that all graphs save for their backwards."""
        return sum(graph.plan.saved_bytes for graph in self.graphs)

    @property
    def offloaded_bytes(self) -> int:
        """Bytes that all graphs move in one step."""
        return 0 if self.schedule is None else self.schedule.moved_bytes

    def __str__(self) -> str:
        if not self.num_compiled:
            return (
                "no graph was compiled: torch.compile skipped all that ran, so that nothing can be "
                'moved; set TORCH_LOGS="+dynamo" to see what it skipped, and why'
            )
        if not self.graphs:
            return (
                f"{self.num_compiled} graph(s) compiled, and none saves anything for a backward: "
                "nothing to move"
            )
        tables = [
            f"graph {index}\n{self._tabulate(each)}" for index, each in enumerate(self.graphs)
        ]
        total = (
            f"total of {len(self.graphs)} graph(s): {self.offloaded_bytes / MIB:.1f} of "
            f"{self.saved_bytes / MIB:.1f} MiB saved are moved"
        )
        lines = [total]
        if self.schedule is not None:
            lines.append(str(self.schedule))
        if self.bound is not None:
            lines.append(str(self.bound))
        if self.ioengine:
            step, engine = self.step, self.ioengine
            lines.append(f"ioengine {engine if step is None else step.describe_engine(engine)}")
        return "\n\n".join([*tables, "\n".join(lines)])

    def _tabulate(self, graph: GraphExplanation) -> str:
        rows = [("value", "MiB", "decision", "write ends before", "read starts before")]
        kept: Counter[str] = Counter()
        folded = [value for value in graph.plan.values if value.refusal in STATIC_REASONS]
        for reason in STATIC_REASONS:
            values = [value for value in folded if value.refusal == reason]
            if values:
                size = f"{sum(value.nbytes for value in values) / MIB:.2f}"
                rows.append((f"{len(values)} value(s)", size, f"keep: {reason}", "", ""))
        for value in graph.plan.values:
            reason, places = self._describe_decision(graph, value)
            if not places:
                kept[reason.removeprefix("keep: ")] += value.nbytes
            if value not in folded:
                written, read = places or ("", "")
                rows.append((value.name, f"{value.nbytes / MIB:.2f}", reason, written, read))
        lines = [format_table(rows)]
        if graph.plan.cut is not None:
            lines.append(f"recomputed: {describe_cut(graph.plan.cut)}")
        lines += [f"kept {nbytes / MIB:.1f} MiB: {reason}" for reason, nbytes in kept.most_common()]
        return "\n".join(lines)

    def _describe_decision(
        self, graph: GraphExplanation, value: SavedValue
    ) -> tuple[str, tuple[str, str] | None]:
        """What becomes of the value; where its write has ended, and its read starts."""
        if value.refusal is not None or self.schedule is None or graph.index is None:
            return f"keep: {value.refusal}", None
        destination = self.schedule.calls[graph.index].destinations[value.name]
        if destination == "keep":
            return f"keep: {self.schedule.kept_for}", None
        name = graph.index, value.name
        written = self._find_place(name, graph, [call.waits for call in self.schedule.calls])
        read = self._find_place(name, graph, [call.reads for call in self.schedule.calls])
        return f"move to {destination}", (written or "not waited for", read)

    def _find_place(
        self,
        value: CallValue,
        graph: GraphExplanation,
        found: Sequence[Mapping[OpEvent, Sequence[CallValue]]],
    ) -> str:
        """The computing node behind the op at which something is done for the value; "" if none."""
        for index, events in enumerate(found):
            for event, values in events.items():
                if value in values:
                    number, place = next(
                        (n, each) for n, each in enumerate(self.graphs) if each.index == index
                    )
                    node = find_next_node(place, event)
                    return node if place is graph else f"{node} of graph {number}"
        return ""


def explain(
    model: Callable[..., Any],
    *args: Any,
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Explanation:
    """Explain what `backend="fxoffload"` with `options` does to `model(*args, **kwargs)`.

    Traces and plans as compilation does, and generates no code. The forward runs once, in eager
    mode, so that the graphs after a graph break are traced, too; no backward runs. A limit of the
    device's memory counts what is there now: gradients and states of an optimizer may come later.
    Raises ConfigError for an option that cannot work, BudgetError where no plan fits.
    """
    config = OffloadConfig.from_options(options)
    if config.needs_disk:
        for directory in config.directories:
            check_directory(directory)
    found: list[GraphExplanation] = []
    scheduled: list[ScheduledGraph] = []
    bases: list[int | None] = []

    def make_partitioner() -> OffloadPartitioner:
        before: list[TrainingGraph] = []

        def keep_copy(graph: TrainingGraph) -> None:
            before.append(
                replace(graph, forward=_copy(graph.forward), backward=_copy(graph.backward))
            )

        def record(graph: TrainingGraph, known: Transformed) -> None:
            (original,) = before
            halves = original.forward, original.backward, graph.forward, graph.backward
            index = None
            if known.model is not None:
                index, device = len(scheduled), find_device(graph)[0]
                with outside_of_tracing():
                    links, limit = find_links(config, device), find_device_limit(config, device)
                    bases.append(count_held_bytes(device))
                scheduled.append(ScheduledGraph(known.model, config, links, limit))
            found.append(GraphExplanation(*halves, known.plan, index))

        # The store's key is "": nothing will move, so no store is opened and no room reserved.
        return build_partitioner(config, "", on_partitioned=keep_copy, on_transformed=record)

    num_compiled = partition_graphs(model, args, kwargs, config, make_partitioner)
    ioengine = str(runtime.choose_engine(config)) if config.enabled else ""
    step = predict_step(scheduled, bases[0]) if scheduled else None
    bound = None if step is None else predict_bound(scheduled, step.record.schedule)
    return Explanation(tuple(found), num_compiled, ioengine, step, bound)


def find_next_node(graph: GraphExplanation, event: OpEvent) -> str:
    """The first computing node behind the op of `graph` that `event` names."""
    node = find_ops(graph.forward_after.graph, graph.backward_after.graph)[event]
    while node.op == "call_function" and node.target in OPS:
        node = node.next
    return "end" if node.op == "output" else node.name


def _copy(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of `module`: the same nodes, sharing the same constants."""
    return fx.GraphModule(module, copy.deepcopy(module.graph))
