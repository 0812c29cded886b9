"""Reports of small programs, for the tests of what is made from reports."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from programs import make_mirrored_model, make_model, make_program

from fxoffload.config import OffloadConfig
from fxoffload.inspection.report_builder import build_report
from fxoffload.inspection.report_records import ReportData
from fxoffload.planner.graph_model import GraphModel
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
    model = make_mirrored_model(values)
    return build_report(make_scheduled(layers, SLOW, model=model, memory_budget="min"))
