"""Plan writer: write a choice of transfers as the plan of a graph, with positions as node names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from fxoffload.planner.plan import KEPT, Decision, Keep, Offload, Plan
from fxoffload.planner.search import Choice
from fxoffload.planner.simulation import Simulation
from fxoffload.planner.step import Step
from fxoffload.sizes import MIB


def write_plan(
    step: Step, choice: Choice, *, budget_bytes: int | Literal["min"] | None = None
) -> Plan:
    """The plan of a graph whose nodes are `step`, by the transfers of `choice`.

    budget_bytes: what was asked for.
    """
    best, unmoved, reason = choice.best, choice.unmoved, choice.reason
    decisions: list[Decision] = []
    for value in step.values:
        transfer = best.transfers.get(value.name)
        if transfer is None:
            decisions.append(Keep(value.refusal or reason))
            continue
        release = transfer.release
        decisions.append(
            Offload(
                transfer.tier,
                released_before="" if release is None else step.names[release],
                prefetched_before=step.names[transfer.prefetch],
            )
        )
    return Plan(
        values=step.values,
        decisions=tuple(decisions),
        peak_bytes=best.simulation.peak_bytes,
        unmoved_peak_bytes=unmoved.simulation.peak_bytes,
        budget_bytes=budget_bytes if isinstance(budget_bytes, int) else None,
        step_seconds=best.simulation.step_seconds,
        exposed_seconds=best.simulation.exposed_seconds,
        contended_seconds=best.simulation.contended_seconds,
        held_bytes=best.held_bytes,
        kept_at_peak=_find_kept(step, decisions, best.simulation.peak_position),
    )


def _find_kept(
    step: Step, decisions: Sequence[Decision], position: int
) -> tuple[tuple[str, int], ...]:
    """Bytes that are kept at `position`, by reason, largest first."""
    kept: Counter[str] = Counter()
    for value, decision in zip(step.values, decisions, strict=True):
        lives = value.counts and value.born <= position <= step.freed(value)
        if isinstance(decision, Keep) and lives:
            kept[decision.reason] += value.kept_bytes
    return tuple(kept.most_common())


def describe_kept(step: Step, simulation: Simulation) -> str:
    """For messages: what the program itself keeps at the peak, beginning with a comma; else ""."""
    kept = [Keep(value.refusal or "") for value in step.values]
    nbytes = dict(_find_kept(step, kept, simulation.peak_position)).get(KEPT, 0)
    return f", {nbytes / MIB:.1f} MiB of it {KEPT} (fxoffload.keep, keeping)" if nbytes else ""
