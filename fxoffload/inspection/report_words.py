"""The sentences of a report: its verdict, and what to change. Every number is one of the report."""

from __future__ import annotations

from collections import Counter

from fxoffload.inspection.report_records import Figures, LinkRow, ReportData
from fxoffload.sizes import MIB

# Shares of a step: below this waits are called none; above this a link is called busy.
NOTICED = 0.002
BUSY = 0.8
# Of a budget, or of the peak: a smaller share is not worth a hint.
WORTH = 0.1
# A drive whose rating lasts shorter is named.
SHORT_YEARS = 3.0
# By how much a measurement may differ before it is named.
TOLERANCE = 0.03


def write_verdict(data: ReportData) -> str:
    """One sentence: peak, cost, waits, and the use of the busiest tier."""
    figures = choose_figures(data)
    peak = f"peak {_mib(figures.peak_bytes or data.predicted.peak_bytes or 0)}"
    if data.budget_bytes is not None:
        peak += f" of {_mib(data.budget_bytes)}"
    peak += f" MiB ({_mib(data.unmoved_peak_bytes)} with nothing moved)"
    if figures.slowdown < NOTICED:
        cost = "no slower, nothing waits"
    else:
        cost = (
            f"{100 * figures.slowdown:.1f} % slower, as the compute waits for transfers for "
            f"{1e3 * figures.exposed_seconds:.1f} ms of the step"
        )
    tiers = find_uses(data)
    use = "; nothing is moved"
    if tiers:
        use = "; " + ", ".join(
            f"the {_name(tier)} is used at {100 * share:.0f} %" for tier, share in tiers.items()
        )
    how = "" if data.measured is not None else ", as predicted"
    return f"{peak}, {cost}{use}{how}"


def choose_figures(data: ReportData) -> Figures:
    """What was measured, else what is predicted."""
    return data.measured or data.predicted


def find_uses(data: ReportData) -> dict[str, float]:
    """By tier that moves something, the share of the step in which it transfers."""
    seconds = choose_figures(data).step_seconds
    sums: Counter[str] = Counter()
    for link in data.links:
        sums[link.tier] += link.nbytes
    return {
        tier: min(1.0, sum(k.busy_seconds for k in data.links if k.tier == tier) / seconds)
        for tier, nbytes in sums.items()
        if nbytes and seconds
    }


def find_hints(data: ReportData) -> tuple[str, ...]:
    """What a user may change, with the numbers that say so; empty where nothing stands out."""
    hints = [
        *_hint_at_measurement(data),
        *_hint_at_waits(data),
        *_hint_at_budget(data),
        *_hint_at_holders(data),
        *_hint_at_wear(data),
    ]
    return tuple(hints)


def _hint_at_measurement(data: ReportData) -> list[str]:
    if data.source == "run" and data.measured is None:
        return [
            "No step that follows this schedule has been measured yet: run some more steps (a step "
            "is measured now and then), and report again."
        ]
    measured = data.measured
    if measured is None or measured.peak_bytes is None or data.budget_bytes is None:
        return []
    over = measured.peak_bytes - data.budget_bytes
    if over <= TOLERANCE * data.budget_bytes:
        return []
    return [
        f"The measured peak exceeds the budget by {_mib(over)} MiB: other threads of this process "
        "are part of it; run more steps, so that the schedule learns of it."
    ]


def _hint_at_waits(data: ReportData) -> list[str]:
    figures = choose_figures(data)
    if figures.slowdown < NOTICED:
        return []
    hints: list[str] = []
    for link in data.links:
        seconds = _find_room_seconds(data, link)
        if link.nbytes and seconds > 0 and link.busy_seconds > BUSY * seconds:
            hints.append(
                f"{'Writes' if link.direction == 'write' else 'Reads'} of the {_name(link.tier)} "
                f"take {link.busy_seconds:.3f} s beside {seconds:.3f} s of compute. They would be "
                f"hidden at {link.nbytes / seconds / 1e9:.2f} GB/s; it has "
                f"{link.bytes_per_second / 1e9:.2f}. Use a faster drive or several (`directory` "
                "takes a list), a host tier (`host_budget`), or a higher budget."
            )
    waits = sorted(data.values, key=lambda value: -value.exposed_seconds)[:3]
    found = [
        f"{value.name} of call {value.call} ({1e3 * value.exposed_seconds:.1f} ms)"
        for value in waits
        if value.exposed_seconds
    ]
    if found and not hints:
        hints.append(
            f"What waits longest: {', '.join(found)}. The links have the bandwidth for all, but "
            "not in time for these: raise the budget, or keep them (`fxoffload.keep`)."
        )
    return hints


def _find_room_seconds(data: ReportData, link: LinkRow) -> float:
    """Compute beside which the transfers of this direction can hide."""
    halves = [
        span
        for span in data.spans
        if span.kind == "compute" and span.forward == (link.direction == "write")
    ]
    waits = sum(
        wait.end - wait.start
        for wait in data.spans
        if wait.kind == "wait" and any(half.start <= wait.start < half.end for half in halves)
    )
    return max(0.0, sum(half.end - half.start for half in halves) - waits)


def _hint_at_budget(data: ReportData) -> list[str]:
    if not data.moved_bytes:
        return ["Nothing has to move: the step fits. A larger batch may fit, too."]
    if data.budget_bytes is None:
        return []
    # A sampler may miss a short peak, so that the prediction counts, too.
    known = [data.predicted.peak_bytes or 0, (data.measured or data.predicted).peak_bytes or 0]
    peak_bytes = max(known)
    left = data.budget_bytes - peak_bytes
    if left < WORTH * data.budget_bytes:
        return []
    return [
        f"{_mib(left)} MiB of the budget are left: a larger batch or sequence fits, about "
        f"{data.budget_bytes / peak_bytes:.2f} times as large."
    ]


def _hint_at_holders(data: ReportData) -> list[str]:
    """Values that must stay, and hold much of the peak."""
    held: Counter[str] = Counter()
    reasons = {(v.call, v.name): v.reason for v in data.values if v.decision == "keep"}
    for each in data.holders:
        reason = reasons.get((each.call if each.call is not None else -1, each.name))
        if reason and reason != data.kept_for:
            held[reason] += each.nbytes
    peak_bytes = data.predicted.peak_bytes or 0
    return [
        f"{_mib(nbytes)} MiB of the peak may not move: {reason}."
        + (" Lower `min_bytes`." if "min_bytes" in reason else "")
        for reason, nbytes in held.most_common()
        if nbytes > WORTH * peak_bytes
    ]


def _hint_at_wear(data: ReportData) -> list[str]:
    wear = data.wear
    if wear is None:
        return []
    if wear.years is None:
        return [
            f"Each step writes {wear.written_bytes / 1e9:.3g} GB to the drive: state its rating "
            '(`endurance="600TBW"`) to see how long it lasts.'
        ]
    if wear.years > SHORT_YEARS:
        return []
    return [
        f"The drive's rating lasts {wear.years:.2f} years of steps without a pause: a host tier "
        "(`host_budget`) or a higher budget writes less."
    ]


def _mib(nbytes: int) -> str:
    return f"{nbytes / MIB:.0f}" if nbytes >= 10 * MIB else f"{nbytes / MIB:.2f}"


def _name(tier: str) -> str:
    return {"nvme": "drive", "host": "host memory"}.get(tier, tier)
