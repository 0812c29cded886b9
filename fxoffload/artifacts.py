"""Artifacts: add graphs, plans and schedules to torch's structured trace (TORCH_TRACE, tlparse).

Nothing is computed unless a trace is being written.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from fxoffload.graph import TrainingGraph
from fxoffload.planner.plan import Decision, Offload, Plan, SavedValue, describe_cut
from fxoffload.schedule import Schedule
from fxoffload.torch_internals import emit_artifact, emit_graph


def emit_graphs(graph: TrainingGraph, stage: Literal["before", "after"]) -> None:
    """Add both graphs as code, before or after the passes."""
    emit_graph(f"forward_graph_{stage}", graph.forward)
    emit_graph(f"backward_graph_{stage}", graph.backward)


def emit_plan(plan: Plan) -> None:
    """Add `plan`: the decision on each value and its reason, and the predicted peak and seconds."""
    emit_artifact("plan", "json", lambda: describe_plan(plan))


def emit_schedule(schedule: Schedule) -> None:
    """Add `schedule`: where each call of a step sends its values. It belongs to no single graph."""
    emit_artifact("schedule", "json", lambda: describe_schedule(schedule))


def describe_plan(plan: Plan) -> dict[str, Any]:
    """`plan` as plain data for JSON."""
    pairs = zip(plan.values, plan.decisions, strict=True)
    return {
        "saved_bytes": plan.saved_bytes,
        "moved_bytes": plan.offloaded_bytes,
        "kept_bytes_by_reason": plan.kept_bytes_by_reason(),
        "budget_bytes": plan.budget_bytes,
        "peak_bytes": plan.peak_bytes,
        "unmoved_peak_bytes": plan.unmoved_peak_bytes,
        "step_seconds": plan.step_seconds,
        "exposed_seconds": plan.exposed_seconds,
        "recomputed": describe_cut(plan.cut),
        "values": [_describe_value(value, decision) for value, decision in pairs],
    }


def describe_schedule(schedule: Schedule) -> dict[str, Any]:
    """`schedule` as plain data for JSON, without the ops at which transfers start and end."""
    graphs = {half.call: half.graph for half in schedule.program}
    return {
        "saved_bytes": schedule.saved_bytes,
        "moved_bytes": schedule.moved_bytes,
        "kept_for": schedule.kept_for,
        "budget_bytes": schedule.budget_bytes,
        "peak_bytes": schedule.peak_bytes,
        "unmoved_peak_bytes": schedule.unmoved_peak_bytes,
        "step_seconds": schedule.step_seconds,
        "exposed_seconds": schedule.exposed_seconds,
        "calls": [
            {"call": number, "graph": graphs[number], "destinations": dict(call.destinations)}
            for number, call in enumerate(schedule.calls)
        ],
    }


def _describe_value(value: SavedValue, decision: Decision) -> dict[str, Any]:
    moves = isinstance(decision, Offload)
    return {
        "name": value.name,
        "bytes": value.nbytes,
        "decision": decision.tier if moves else "keep",
        "reason": value.moved_for if moves else decision.reason,
        "write_ends_before": decision.released_before if moves else "",
        "read_starts_before": decision.prefetched_before if moves else "",
        **asdict(value.origin),
    }
