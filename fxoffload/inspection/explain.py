"""Explain: show the plan of each graph of a model, without a training step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from fxoffload import runtime
from fxoffload.config import OffloadConfig
from fxoffload.directories import check_directory
from fxoffload.graph import TrainingGraph
from fxoffload.inspection.tables import format_table
from fxoffload.inspection.tracing import partition_graphs
from fxoffload.ops import OPS, PREFETCH, RELEASE
from fxoffload.passes.lifetimes import CONSTANT, STATIC_INPUT
from fxoffload.planner.plan import Offload, Plan
from fxoffload.planning import build_partitioner
from fxoffload.torch_internals import OffloadPartitioner

MIB = 2**20
# A model has hundreds of values that are kept for these reasons, whatever the options: they get one
# row for each reason.
STATIC_REASONS = (STATIC_INPUT, CONSTANT)


@dataclass(frozen=True, slots=True)
class GraphExplanation:
    """One compiled graph: its forward and backward before and after the passes, and the plan."""

    forward_before: fx.GraphModule
    backward_before: fx.GraphModule
    forward_after: fx.GraphModule
    backward_after: fx.GraphModule
    plan: Plan

    def __str__(self) -> str:
        rows = [("value", "MiB", "decision", "released after", "prefetched before")]
        folded = [value for value in self.plan.values if value.refusal in STATIC_REASONS]
        for reason in STATIC_REASONS:
            values = [value for value in folded if value.refusal == reason]
            if values:
                size = f"{sum(value.nbytes for value in values) / MIB:.2f}"
                rows.append((f"{len(values)} value(s)", size, f"keep: {reason}", "", ""))
        for value, decision in zip(self.plan.values, self.plan.decisions, strict=True):
            if value in folded:
                continue
            size = f"{value.nbytes / MIB:.2f}"
            if isinstance(decision, Offload):
                ticket = f"offload_{value.name}"
                released = find_released_after(self.forward_after.graph, ticket)
                prefetched = find_prefetched_before(self.backward_after.graph, ticket)
                rows.append((value.name, size, f"move to {decision.tier}", released, prefetched))
            else:
                rows.append((value.name, size, f"keep: {decision.reason}", "", ""))
        return f"{format_table(rows)}\n{self.plan}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """All graphs that one call of a model compiles to; `print` it for the tables and totals."""

    graphs: tuple[GraphExplanation, ...]  # The graphs that save values for a backward.
    num_compiled: int  # All graphs that torch.compile found, inference graphs included.
    ioengine: str = ""  # The engine that would move the values, and the reason for it.

    @property
    def saved_bytes(self) -> int:
        """Bytes that all graphs save for their backwards."""
        return sum(graph.plan.saved_bytes for graph in self.graphs)

    @property
    def offloaded_bytes(self) -> int:
        """Bytes that all graphs move in one step."""
        return sum(graph.plan.offloaded_bytes for graph in self.graphs)

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
        ioengine = [f"ioengine {self.ioengine}"] if self.ioengine else []
        tables = [f"graph {index}\n{graph}" for index, graph in enumerate(self.graphs)]
        total = (
            f"total of {len(self.graphs)} graph(s): {self.offloaded_bytes / MIB:.1f} of "
            f"{self.saved_bytes / MIB:.1f} MiB saved are moved"
        )
        return "\n\n".join([*tables, "\n".join([total, *ioengine])])


def explain(
    model: Callable[..., Any],
    *args: Any,
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Explanation:
    """Explain what `backend="fxoffload"` with `options` does to `model(*args, **kwargs)`.

    Traces and plans as compilation does, and generates no code. The forward runs once, in eager
    mode, so that the graphs after a graph break are traced, too; no backward runs.
    Raises ConfigError for an option that cannot work.
    """
    config = OffloadConfig.from_options(options)
    if config.needs_disk:
        for directory in config.directories:
            check_directory(directory)
    found: list[GraphExplanation] = []

    def make_partitioner() -> OffloadPartitioner:
        before: list[TrainingGraph] = []

        def keep_copy(graph: TrainingGraph) -> None:
            before.append(
                replace(graph, forward=_copy(graph.forward), backward=_copy(graph.backward))
            )

        def record(graph: TrainingGraph, plan: Plan) -> None:
            (original,) = before
            found.append(
                GraphExplanation(
                    original.forward, original.backward, graph.forward, graph.backward, plan
                )
            )

        # The store's key is "": nothing will move, so no store is opened and no room reserved.
        return build_partitioner(config, "", on_partitioned=keep_copy, on_transformed=record)

    num_compiled = partition_graphs(model, args, kwargs, config, make_partitioner)
    ioengine = str(runtime.choose_engine(config)) if config.enabled else ""
    return Explanation(tuple(found), num_compiled, ioengine)


def find_released_after(graph: fx.Graph, ticket: str) -> str:
    """The last computing node before the release of `ticket`; "end" when it does not block."""
    for node in graph.find_nodes(op="call_function", target=RELEASE):
        name, block = node.args[0], node.args[2]
        if str(name) == ticket:
            return _find_neighbour(node, step="prev") if block else "end (does not block)"
    raise KeyError(ticket)


def find_prefetched_before(graph: fx.Graph, ticket: str) -> str:
    """The first computing node after the prefetch of `ticket`."""
    for node in graph.find_nodes(op="call_function", target=PREFETCH):
        if str(node.args[0]) == ticket:
            return _find_neighbour(node, step="next")
    raise KeyError(ticket)


def _copy(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of `module`: the same nodes, sharing the same constants."""
    return fx.GraphModule(module, copy.deepcopy(module.graph))


def _find_neighbour(node: fx.Node, *, step: str) -> str:
    while True:
        node = getattr(node, step)
        if node.op in ("root", "output", "placeholder"):
            return "start" if step == "prev" else "end"
        if node.target not in OPS:
            return node.name
