"""Measures the seconds that planning takes, on a graph as deep as asked for.

    python -m benchmarks.planning_time --layers 48

Nothing runs and no code is generated; the model has no memory. Timed are the parts of planning, on
the partition that torch makes by itself: analysis, one simulation of a step, and the selection at
each budget, which places and simulates candidates. Budgets are shares of the peak with nothing
moved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import torch

from benchmarks.fresh_process import Record
from benchmarks.model_arguments import LAYERS, ModelArguments, describe_sizes
from benchmarks.runner import Benchmark, Show, Table, describe_spread, option
from benchmarks.simulated import make_hardware
from fxoffload import BudgetError, OffloadConfig
from fxoffload.cli.byte_models import build_model, make_tokens
from fxoffload.cost import make_cost_model
from fxoffload.graph import TrainingGraph
from fxoffload.inspection.tracing import partition_without_memory
from fxoffload.passes.hoisting import hoist_reductions, hoist_saved
from fxoffload.passes.lifetimes import find_saved_values
from fxoffload.passes.step_model import build_step
from fxoffload.planner.search import Choice
from fxoffload.planner.selection import choose_transfers
from fxoffload.planner.simulation import simulate
from fxoffload.planning import build_partitioner

Result = TypeVar("Result")
SHARES = (0.5, 0.25)
# Any hardware: what hides and what does not both occur on it.
HARDWARE = make_hardware("150TFLOP/s", "1.2TB/s", "80GiB", "6GB/s", "6.5GB/s", "25GB/s")


@dataclass(frozen=True, slots=True)
class PlanningArguments(ModelArguments):
    """The command line."""

    layers: int = LAYERS(48)
    rounds: int = option(5)


def measure(arguments: PlanningArguments, show: Show) -> Record:
    """Nodes of the graph, and the seconds of each part in every round."""
    workload = arguments.make_workload(arguments.layers)
    config = OffloadConfig(**workload.options, memory_budget="min")
    found: list[Record] = []

    def time_parts(graph: TrainingGraph) -> None:
        hoist_saved(graph)
        hoist_reductions(graph)
        found.append(time_planning(graph, config.min_storage_bytes, arguments.rounds))

    cost = make_cost_model(HARDWARE)
    build = partial(build_partitioner, config, "", cost=cost, on_partitioned=time_parts)
    show("tracing and planning")
    with torch.device("meta"):
        model = build_model(workload.model, workload.shape)
        tokens = make_tokens(workload.shape)
    partition_without_memory(model, (tokens,), {}, config, build)
    # A loss may be a graph of its own.
    return max(found, key=lambda record: record["nodes"])


def time_planning(graph: TrainingGraph, min_bytes: int, rounds: int) -> Record:
    """Nodes and values of `graph`, and the seconds of each part of planning in every round."""
    cost = make_cost_model(HARDWARE)

    def select(budget: int | Literal["min"] | None) -> Choice | None:
        with suppress(BudgetError):  # That is as much work, and an answer too.
            return choose_transfers(step, cost.links, budget_bytes=budget)
        return None

    values, analysis = time_calls(lambda: find_saved_values(graph, min_bytes=min_bytes), rounds)
    step, modelling = time_calls(lambda: build_step(graph, values, cost), rounds)
    lowest, selection = time_calls(partial(select, "min"), rounds)
    assert lowest is not None, '"min" is no budget that could be missed'
    transfers = lowest.best.transfers
    _, simulation = time_calls(lambda: simulate(step, transfers, cost.links), rounds)
    seconds = {
        "saved values": analysis,
        "step model": modelling,
        "one simulation": simulation,
        "selection, no budget": time_calls(partial(select, None), rounds)[1],
        "selection, min": selection,
    }
    for share in SHARES:
        budget = int(share * lowest.unmoved.simulation.peak_bytes)
        seconds[f"selection, {share}"] = time_calls(partial(select, budget), rounds)[1]
    return {"nodes": len(step.names), "values": len(values), "seconds": seconds}


def time_calls(call: Callable[[], Result], rounds: int) -> tuple[Result, list[float]]:
    """What `call` returns, and its seconds in every round."""
    results: list[Result] = []
    seconds: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        results.append(call())
        seconds.append(time.perf_counter() - start)
    return results[-1], seconds


def tabulate(record: Record) -> list[Table]:
    """A row for each part."""
    rows = [[f"{record['nodes']} nodes, {record['values']} values", "seconds (range)"]]
    rows += ([part, describe_spread(each, 4)] for part, each in record["seconds"].items())
    return [Table(rows, describe_sizes(record))]


main = Benchmark("planning_time", __doc__, PlanningArguments, measure, tabulate)

if __name__ == "__main__":
    main()
