"""A torch.compile backend that moves saved activations to NVMe or host memory during a step.

step = torch.compile(model, backend="fxoffload", options={"directory": "/mnt/nvme"})
"""

from fxoffload.backend import GraphCounts, compile, graph_counts, schedules
from fxoffload.config import OffloadConfig
from fxoffload.endurance import EnduranceProjection, project_endurance
from fxoffload.errors import (
    BudgetError,
    ChecksumError,
    ConfigError,
    GraphError,
    MarkError,
    ModifiedError,
    OffloadError,
    PlanError,
    ReportError,
    StoreClosed,
    StoreError,
    StoreFull,
    TransferError,
)
from fxoffload.hardware import Hardware
from fxoffload.in_place import compile_in_place
from fxoffload.inspection.bounds import find_bounds
from fxoffload.inspection.explain import Explanation, explain
from fxoffload.inspection.forecast import BatchForecast, Forecast, LargestBatch
from fxoffload.inspection.graph_diff import GraphDiff, diff_pass
from fxoffload.inspection.lifetime_chart import draw_lifetimes
from fxoffload.inspection.report import Report, report
from fxoffload.inspection.what_if import largest_batch, simulate
from fxoffload.marks import keep, keeping, move
from fxoffload.planner.bound import Bound
from fxoffload.runtime import (
    StoreStatistics,
    begin_step,
    drive_lifetimes,
    reset_statistics,
    statistics,
)
from fxoffload.schedule import Schedule

__all__ = [
    "BatchForecast",
    "Bound",
    "BudgetError",
    "ChecksumError",
    "ConfigError",
    "EnduranceProjection",
    "Explanation",
    "Forecast",
    "GraphCounts",
    "GraphDiff",
    "GraphError",
    "Hardware",
    "LargestBatch",
    "MarkError",
    "ModifiedError",
    "OffloadConfig",
    "OffloadError",
    "PlanError",
    "Report",
    "ReportError",
    "Schedule",
    "StoreClosed",
    "StoreError",
    "StoreFull",
    "StoreStatistics",
    "TransferError",
    "begin_step",
    "compile",
    "compile_in_place",
    "diff_pass",
    "draw_lifetimes",
    "drive_lifetimes",
    "explain",
    "find_bounds",
    "graph_counts",
    "keep",
    "keeping",
    "largest_batch",
    "move",
    "project_endurance",
    "report",
    "reset_statistics",
    "schedules",
    "simulate",
    "statistics",
]
