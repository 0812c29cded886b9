"""Schedules of this process: what the runtime asks for when a step has shown its program."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from fxoffload import runtime
from fxoffload.config import OffloadConfig
from fxoffload.errors import BudgetError
from fxoffload.machine import find_device_links, measure_links
from fxoffload.planner.graph_model import GraphModel
from fxoffload.planner.program import can_schedule, make_schedule
from fxoffload.schedule import HalfMeasurement, Program, Schedule

log = logging.getLogger(__name__)

# By how much what was measured may exceed a budget without an error: Python's own objects, and what
# other threads hold for a moment, are part of it.
TOLERANCE = 0.02
NOISE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class ScheduledGraph:
    """A compiled graph whose ops follow schedules. device: that of its inputs."""

    model: GraphModel
    config: OffloadConfig
    device: torch.device


_graphs: dict[str, ScheduledGraph] = {}


def follow_schedules(key: str, graph: ScheduledGraph) -> None:
    """Let the ops that carry `key` follow the schedules of the steps they belong to."""
    _graphs[key] = graph
    runtime.schedule_graph(key, schedule_program)


def follows_schedules(key: str) -> bool:
    """Whether the ops that carry `key` follow schedules."""
    return key in _graphs


def schedule_program(program: Program, measured: Sequence[HalfMeasurement]) -> Schedule | None:
    """The schedule of a program, under the lowest budget of its graphs.

    None where it is left to the safe rule: see can_schedule. Raises BudgetError where none fits, by
    more than TOLERANCE and NOISE_BYTES.
    """
    if not can_schedule(program):
        return None
    graphs = {half.graph: _graphs[half.graph] for half in program}
    budgets = [each.config.budget_bytes for each in graphs.values()]
    first = next(iter(graphs.values()))
    links = find_device_links(first.config, measure_links(first.config), first.device)
    budget_bytes = min(budget for budget in budgets if budget is not None)
    make = partial(
        make_schedule,
        program,
        {key: each.model for key, each in graphs.items()},
        measured,
        links,
        budget_bytes=budget_bytes,
        host_bytes=first.config.host_bytes or 0,
        max_inflight_bytes=first.config.inflight_bytes,
    )
    try:
        return make()
    except BudgetError as error:
        if error.lowest_peak_bytes > (1.0 + TOLERANCE) * budget_bytes + NOISE_BYTES:
            raise
        found = make(lowest=True)
        log.info("the budget is as low as what can be measured: %s", found)
        return found
