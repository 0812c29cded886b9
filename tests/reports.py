"""Reports of small programs, for the tests of what is made from reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from programs import make_model, make_program
from steps import make_step, make_value

from fxoffload.config import OffloadConfig
from fxoffload.inspection.report_builder import build_report
from fxoffload.inspection.report_records import ReportData
from fxoffload.planner.graph_model import GraphModel, build_graph_model
from fxoffload.planner.link import Link
from fxoffload.planner.plan import Origin
from fxoffload.schedule import HalfMeasurement, ProgramRecord, StepMeasurement
from fxoffload.step_schedules import ScheduledGraph, ScheduledStep, make_graph_schedule

# 100 bytes take six nodes of a second and a quarter of one.
SLOW = Link(16.0, 16.0, 0.0)
FAST = Link(1e6, 1e6, 0.0)
ORIGIN = Origin("layers.gate", "/a/long/path/model.py:7", "mm", "5 x 5", "float32")


def make_scheduled(
    calls: int = 4, link: Link = SLOW, *, model: GraphModel | None = None, **options: Any
) -> ScheduledStep:
    """A step of `calls` calls of one graph, before it has run."""
    known = model or make_model()
    known = replace(known, values=tuple(replace(v, origin=ORIGIN) for v in known.values))
    config = OffloadConfig.from_options({"directory": ".", **options})
    graphs = {"block": ScheduledGraph(known, config, {"nvme": link})}
    program = make_program(calls)
    measured = StepMeasurement([HalfMeasurement({})] * len(program))
    schedule = make_graph_schedule(graphs, program, measured)
    return ScheduledStep(ProgramRecord(schedule, 0, measured), graphs)


def make_data(calls: int = 4, link: Link = SLOW, **options: Any) -> ReportData:
    """The report of such a step; by default some values move, and some writes are waited for."""
    return build_report(make_scheduled(calls, link, **{"memory_budget": 350, **options}))


def make_deep_data(layers: int = 48, values: int = 10) -> ReportData:
    """The report of many equal calls, at the lowest peak."""
    made = [
        make_value(
            f"value_with_a_name_{index}",
            born=2 * index,
            last_use=2 * index + 1,
            first_use=2 * (values - 1 - index),
            freed=2 * (values - 1 - index) + 1,
        )
        for index in range(values)
    ]
    names = [value.name for value in made]
    forward = [
        op
        for index, name in enumerate(names)
        for op in ((("offload", name), 2 * index + 1), (("release", name), 2 * index + 2))
    ]
    backward = [
        ((kind, name), 2 * (values - 1 - index))
        for index, name in reversed(list(enumerate(names)))
        for kind in ("prefetch", "wait")
    ]
    step = make_step(made, forward=2 * values, backward=2 * values)
    model = build_graph_model(step, forward, backward)
    return build_report(make_scheduled(layers, SLOW, model=model, memory_budget="min"))
