"""Plans and forecasts as tables, and as data for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from fxoffload.inspection.forecast import BatchForecast, Forecast, LargestBatch
from fxoffload.planner.plan import Keep, Plan, describe_cut
from fxoffload.schedule import Schedule
from fxoffload.sizes import MIB
from fxoffload.tables import format_table


def format_plan(plan: Plan) -> str:
    """A table of what moves, and of what stays by its reason."""
    rows = [("value", "MiB", "decision", "write ends before", "read starts before")]
    for value, decision in plan.offloads:
        written = decision.released_before or "not waited for"
        read = decision.prefetched_before or "its first reader"
        size = f"{value.nbytes / MIB:.2f}"
        rows.append((value.name, size, f"move to {decision.tier}", written, read))
    counts = Counter(each.reason for each in plan.decisions if isinstance(each, Keep))
    for reason, nbytes in plan.kept_bytes_by_reason().items():
        size = f"{nbytes / MIB:.2f}"
        rows.append((f"{counts[reason]} value(s)", size, f"keep: {reason}", "", ""))
    recomputed = "" if plan.cut is None else f"\nrecomputed: {describe_cut(plan.cut)}"
    return format_table(rows) + recomputed


def format_forecast(forecast: Forecast) -> str:
    """The table of each graph, and the table of the step."""
    graphs = [f"graph {index}\n{format_plan(plan)}" for index, plan in enumerate(forecast.plans)]
    return "\n\n".join([*graphs, str(forecast)])


def format_budgets(rows: Sequence[dict[str, Any]]) -> str:
    """A table of the step under each budget. rows: of `try_budgets`."""
    table = [("budget MiB", "of unmoved peak", "peak MiB", "step s", "exposed s", "written MiB")]
    for row in rows:
        start = f"{row['budget_bytes'] / MIB:.1f}", f"{row['share']:.0%}"
        if row["error"]:
            lowest = f"does not fit; lowest peak {row['lowest_peak_bytes'] / MIB:.1f}"
            table.append((*start, lowest, "", "", ""))
            continue
        table.append(
            (
                *start,
                f"{row['peak_bytes'] / MIB:.1f}",
                f"{row['step_seconds']:.4g}",
                f"{row['exposed_seconds']:.4g}",
                f"{row['written_bytes'] / MIB:.1f}",
            )
        )
    return format_table(table)


def describe_forecast(forecast: Forecast) -> dict[str, Any]:
    """The step of `forecast` as data."""
    return {
        "step_seconds": forecast.step_seconds,
        "exposed_seconds": forecast.exposed_seconds,
        "peak_bytes": forecast.peak_bytes,
        "unmoved_peak_bytes": max((plan.unmoved_peak_bytes for plan in forecast.plans), default=0),
        "written_bytes": forecast.written_bytes,
        "resident_bytes": forecast.resident_bytes,
        "fits": forecast.fits,
        "graphs": [_describe_plan(plan) for plan in forecast.plans],
    }


def describe_schedule(schedule: Schedule) -> dict[str, Any]:
    """The predicted step of `schedule` as data."""
    return {
        "step_seconds": schedule.step_seconds,
        "exposed_seconds": schedule.exposed_seconds,
        "peak_bytes": schedule.peak_bytes,
        "unmoved_peak_bytes": schedule.unmoved_peak_bytes,
        "moved_bytes": schedule.moved_bytes,
        "saved_bytes": schedule.saved_bytes,
        "graphs": [{"destinations": dict(call.destinations)} for call in schedule.calls],
    }


def describe_batches(found: LargestBatch) -> dict[str, Any]:
    """The largest batches as data; None where no batch fits."""
    return {
        "memory_budget_bytes": found.memory_budget_bytes,
        "throughput_ratio": found.throughput_ratio,
        "unmoved": None if found.unmoved is None else _describe_batch(found.unmoved),
        "moved": _describe_batch(found.moved),
    }


def _describe_batch(batch: BatchForecast) -> dict[str, Any]:
    forecast = batch.forecast
    return {
        "batch": batch.batch,
        "samples_per_second": batch.samples_per_second,
        "step_seconds": forecast.step_seconds,
        "peak_bytes": forecast.peak_bytes,
        "written_bytes": forecast.written_bytes,
    }


def _describe_plan(plan: Plan) -> dict[str, Any]:
    values: list[dict[str, Any]] = []
    for value, decision in zip(plan.values, plan.decisions, strict=True):
        row: dict[str, Any] = {"name": value.name, "bytes": value.nbytes}
        if isinstance(decision, Keep):
            row |= {"decision": "keep", "reason": decision.reason}
        else:
            row |= {
                "decision": f"move to {decision.tier}",
                "write_ends_before": decision.released_before,
                "read_starts_before": decision.prefetched_before,
            }
        values.append(row)
    return {"peak_bytes": plan.peak_bytes, "step_seconds": plan.step_seconds, "values": values}
