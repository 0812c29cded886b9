"""Bounds: the least time and the lowest peak that any plan of transfers can reach for a step.

Both are optima of the linear program in `fluid`, less the tolerances of its solver. Each partition
of a graph, which recomputes other values, is a step of its own; the lowest of their bounds counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf

from fxoffload.planner.fluid import build_fluid
from fxoffload.planner.link import Link
from fxoffload.planner.moments import find_least_bytes
from fxoffload.planner.step import Step
from fxoffload.sizes import MIB

# What the tolerances of the solver may amount to, as a share of the unmoved peak and the compute.
SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Bound:
    """Lower bounds of all plans of a step; `print` it for a line of text.

    within_seconds: of a step. peak_bytes: the lowest peak in that time; None if no partition
    computes within it. lowest_peak_bytes: the lowest peak in any time. budget_bytes: None without a
    budget in bytes. step_seconds: the least under the budget; None without one, `inf` if no plan
    fits.
    """

    within_seconds: float
    peak_bytes: int | None
    lowest_peak_bytes: int
    budget_bytes: int | None = None
    step_seconds: float | None = None

    def __str__(self) -> str:
        parts: list[str] = []
        if self.peak_bytes is not None:
            peak = f"{self.peak_bytes / MIB:.1f} MiB in {self.within_seconds:.3f} s"
            parts.append(f"a peak below {peak}")
        parts.append(f"below {self.lowest_peak_bytes / MIB:.1f} MiB in any time")
        if self.step_seconds is not None and self.budget_bytes is not None:
            parts.append(
                f"less than {self.step_seconds:.3f} s under {self.budget_bytes / MIB:.1f} MiB"
            )
        return "bound: no plan reaches " + ", or ".join(parts)


def find_bound(
    steps: Sequence[Step],
    links: Mapping[str, Link],
    *,
    within_seconds: float,
    budget_bytes: int | None = None,
    host_bytes: int = 0,
) -> Bound:
    """The bound of plans for any of `steps`, which are partitions of one joint graph."""
    peaks = [
        find_least_peak(
            step,
            links,
            waiting_seconds=within_seconds - step.compute_seconds,
            host_bytes=host_bytes,
        )
        for step in steps
        if step.compute_seconds <= within_seconds
    ]
    seconds = None
    if budget_bytes is not None:
        seconds = min(
            find_least_seconds(step, links, budget_bytes=budget_bytes, host_bytes=host_bytes)
            for step in steps
        )
    lowest_bytes = min(map(find_least_bytes, steps))
    return Bound(within_seconds, min(peaks, default=None), lowest_bytes, budget_bytes, seconds)


def find_least_seconds(
    step: Step, links: Mapping[str, Link], *, budget_bytes: int, host_bytes: int = 0
) -> float:
    """The least seconds of `step` with a peak of at most `budget_bytes`; `inf` if none is so low.

    No plan of transfers takes less by `simulate`, however values are divided. host_bytes: capacity
    of the host tier.
    """
    least_bytes = find_least_bytes(step)
    if budget_bytes < least_bytes:
        return inf
    if not step.movable:
        return step.compute_seconds
    fluid = build_fluid(step, links, peak_bytes=budget_bytes * (1.0 + SLACK), host_bytes=host_bytes)
    waited = max(0.0, fluid.program.minimise(fluid.waits) - SLACK)
    return step.compute_seconds + waited * fluid.unit_seconds


def find_least_peak(
    step: Step, links: Mapping[str, Link], *, waiting_seconds: float = 0.0, host_bytes: int = 0
) -> int:
    """The lowest peak of `step` in at most `waiting_seconds` more than its compute.

    What transfers take from compute counts as waiting. `inf`: the peak in any time. Otherwise as
    find_least_seconds.
    """
    least_bytes = find_least_bytes(step)
    if waiting_seconds == inf or not step.movable:
        return least_bytes
    fluid = build_fluid(
        step, links, peak_bytes=least_bytes, may_be_higher=True, host_bytes=host_bytes
    )
    waits = [(wait, 1.0) for wait in fluid.waits]
    fluid.program.require(waits, upper=waiting_seconds / fluid.unit_seconds)
    peak = fluid.program.minimise([fluid.peak])
    return max(least_bytes, ceil((peak - SLACK) * fluid.unit_bytes))
