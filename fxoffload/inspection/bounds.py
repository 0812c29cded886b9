"""Bounds of a training step on other hardware: what no plan of it gets below."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fxoffload.config import OffloadConfig
from fxoffload.cost import CostModel, make_cost_model
from fxoffload.graph import TrainingGraph
from fxoffload.hardware import Hardware
from fxoffload.inspection.tracing import partition_without_memory
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.partition_choice import CUTS
from fxoffload.passes.step_model import build_step
from fxoffload.planner.bound import Bound, find_bound
from fxoffload.planner.plan import Cut
from fxoffload.planner.step import Step
from fxoffload.planning import make_builder
from fxoffload.torch_internals import Graphs, OffloadPartitioner, PartitionFunction

ALL_CUTS: tuple[Cut, ...] = (None, *CUTS)


def find_bounds(
    model: Callable[..., Any],
    *args: Any,
    hardware: Hardware,
    memory_budget: int | str | None = None,
    waiting: float = 0.0,
    cuts: Sequence[Cut] = (None,),
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[Bound, ...]:
    """The bound of each graph of `model(*args, **kwargs)` on `hardware`; nothing is run.

    waiting: how much longer a step may take than the program computes by itself, as a share, where
    the lowest peak is asked for. cuts: the partitions that a plan may choose; by default the
    program's own, ALL_CUTS are those that plans are made for, which recompute more and more. Other
    arguments and errors as of fxoffload.simulate.
    """
    chosen = {"directory": ".", **(options or {}), "memory_budget": memory_budget}
    config = OffloadConfig.from_options(chosen)
    cost = make_cost_model(hardware, with_host_tier=config.host_bytes is not None)
    return tuple(
        find_bound(
            steps,
            cost.links,
            within_seconds=(1.0 + waiting) * steps[0].compute_seconds,
            budget_bytes=config.budget_bytes,
            host_bytes=config.host_bytes or 0,
        )
        for steps in trace_steps(model, args, kwargs, config, cost, cuts)
    )


def trace_steps(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    config: OffloadConfig,
    cost: CostModel,
    cuts: Sequence[Cut] = (None,),
) -> list[list[Step]]:
    """For each graph of `model(*args, **kwargs)`, its steps: of the program's partition, of `cuts`.

    Nothing is run.
    """
    found: list[list[Step]] = []

    def choose(
        partition: PartitionFunction, num_outputs: int, static_inputs: tuple[int, ...]
    ) -> Graphs:
        build = make_builder(partition, num_outputs, static_inputs, {})
        others: list[Cut] = [cut for cut in cuts if cut is not None]
        graphs = [build(None), *map(build, others)]
        found.append(build_steps(graphs, config, cost))
        return graphs[0].forward, graphs[0].backward

    partition_without_memory(
        model, args, kwargs, config, lambda: OffloadPartitioner(choose, "fxoffload bound")
    )
    return found


def build_steps(
    graphs: Iterable[TrainingGraph], config: OffloadConfig, cost: CostModel
) -> list[Step]:
    """The step of each of `graphs`, as plans see it."""
    steps: list[Step] = []
    for graph in graphs:
        values = find_saved_values(graph, min_bytes=config.min_storage_bytes)
        steps.append(build_step(graph, values, cost, fuses=config.compiler == "inductor"))
    return steps
