"""Review of cuts: plan a step that has run once more, with its graphs at each possible cut."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace

from fxoffload.cuts import LEAST_GAIN, choose_cut
from fxoffload.machine import find_host_bytes, find_nominal_links, is_distributed
from fxoffload.planner.graph_model import GraphModel
from fxoffload.planner.plan import Cut
from fxoffload.schedule import (
    UNKNOWN_OWNERS,
    HalfMeasurement,
    Program,
    Schedule,
    StepMeasurement,
)
from fxoffload.step_schedules import ScheduledGraph, find_steps, make_graph_schedule

log = logging.getLogger(__name__)


def review_cuts(schedule: Schedule) -> None:
    """Decide whether the graphs of the step with this `schedule` are compiled at another cut.

    The cuts stay if transfers cost the step little time. Each graph is reviewed once, so that a
    drive that is slow for a while later on does not cause a compilation. The ranks of a job must
    choose the same cuts in the same step: they always review, and by nominal numbers.
    """
    step = next(each for each in find_steps() if each.record.schedule is schedule)
    waiting = {
        key: each.recut
        for key, each in step.graphs.items()
        if each.recut is not None and not each.recut.settled
    }
    price = step.record.assumed.price or 0.0
    taken_seconds = schedule.exposed_seconds + 2 * price * schedule.moved_bytes
    ranks = is_distributed()
    if not ranks and taken_seconds <= LEAST_GAIN * schedule.step_seconds:
        for recut in waiting.values():
            recut.settle()
        return
    start = time.perf_counter()
    others = {key: recut.trace() for key, recut in waiting.items()}
    graphs, measured = step.graphs, step.record.assumed
    if ranks:
        graphs = _make_nominal(graphs, others)
        measured = StepMeasurement([HalfMeasurement({})] * len(schedule.program))
    found = choose_cuts(graphs, schedule.program, measured, others) if graphs else {}
    log.info("%.1f s to choose cuts: %s", time.perf_counter() - start, found or "as they are")
    for key, recut in waiting.items():
        recut.settle(found.get(key, "present"))


def _make_nominal(
    graphs: Mapping[str, ScheduledGraph], others: Mapping[str, Mapping[Cut, GraphModel]]
) -> dict[str, ScheduledGraph]:
    """`graphs` without anything that this rank has measured; empty if some were not traced.

    others: for each graph, its models at each cut, with nominal numbers.
    """
    found: dict[str, ScheduledGraph] = {}
    for key, each in graphs.items():
        if each.recut is None or each.recut.cut not in others.get(key, {}):
            return {}
        stated = each.config.stated_hardware is not None
        links = each.links if stated else find_nominal_links(each.links)
        # What host memory is available here is measured, too.
        host_bytes = find_host_bytes(each.config, links, is_nominal=True)
        config = replace(each.config, host_budget=host_bytes if "host" in links else None)
        found[key] = replace(each, model=others[key][each.recut.cut], links=links, config=config)
    return found


def choose_cuts(
    graphs: Mapping[str, ScheduledGraph],
    program: Program,
    measured: StepMeasurement,
    others: Mapping[str, Mapping[Cut, GraphModel]],
) -> Mapping[str, Cut]:
    """The cuts with which the step takes the least time, see choose_cut.

    The code of another cut has never run. So seconds and bytes of all cuts come from the cost
    model, scaled by the factor between the measured step and its model. The compute time that
    transfers take counts only if the run has shown it, as a probe may be wrong by a factor.
    others: for each graph, its models at each cut.
    """
    own = {key: each.model for key, each in graphs.items()}
    modelled_seconds = sum(
        sum((own[half.graph].forward if half.forward else own[half.graph].backward).seconds)
        for half in program
    )
    seconds = sum(max(half.clocks.values(), default=0.0) for half in measured.halves)
    states = any(each.config.stated_hardware is not None for each in graphs.values())
    pace = 1.0 if states or not seconds else seconds / modelled_seconds
    halves = [replace(h, clocks={}, peak_bytes={}, live_bytes={}) for h in measured.halves]
    unmeasured = replace(measured, halves=halves, owners=UNKNOWN_OWNERS)
    price = measured.price or 0.0

    def make(models: Mapping[str, GraphModel]) -> Schedule:
        at_pace = {
            key: replace(
                graphs[key],
                model=model.scale_seconds(pace),
                links={
                    tier: replace(link, compute_seconds_per_byte=price)
                    for tier, link in graphs[key].links.items()
                },
            )
            for key, model in models.items()
        }
        return make_graph_schedule(at_pace, program, unmeasured)

    return choose_cut(own, others, make)
