"""Advice: warn a running job of waits and slow drives, once for each subject, with the numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from statistics import median

from fxoffload.schedule import LEAST_FLOW_BYTES, Schedule, StepMeasurement
from fxoffload.sizes import MIB

log = logging.getLogger(__name__)

GB = 1e9
# Waits of a smaller share of a step than this are not warned of.
NOTICED_WAITS = 0.1
# The number of measured steps that advice is based on.
JUDGED_STEPS = 3


class Adviser:
    """Logs a warning about each subject at most once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def judge(
        self, schedule: Schedule | None, steps: Sequence[StepMeasurement], *, is_limited: bool
    ) -> None:
        """Log what find_advice finds in `steps`, measured steps that followed `schedule`.

        is_limited: whether there is a budget, so that something has to move. With fewer steps than
        JUDGED_STEPS, nothing is logged.
        """
        if schedule is None or len(steps) < JUDGED_STEPS:
            return
        for subject, text in find_advice(schedule, steps, is_limited=is_limited):
            if subject not in self._said:
                self._said.add(subject)
                log.warning("%s", text)


def find_advice(
    schedule: Schedule, steps: Sequence[StepMeasurement], *, is_limited: bool
) -> Iterator[tuple[str, str]]:
    """Pairs of a subject and its warning; none if no number stands out."""
    if not is_limited and not schedule.moved_bytes and schedule.saved_bytes:
        yield "nothing moves", _describe_unmoved(schedule)
    exposed_seconds = median(step.exposed_seconds for step in steps)
    step_seconds = median(step.step_seconds for step in steps)
    if exposed_seconds <= NOTICED_WAITS * step_seconds:
        return
    yield (
        "waits",
        f"the step waits for transfers for {exposed_seconds:.3f} of {step_seconds:.3f} s "
        f"({exposed_seconds / step_seconds:.0%}, median of {len(steps)} measured steps). Raise the "
        "budget, name several drives (`directory` takes a list) or set host_budget; "
        "fxoffload.report() names the values that are waited for",
    )
    for forward in (True, False):
        yield from _find_slow_links(schedule, steps, forward=forward)


def _find_slow_links(
    schedule: Schedule, steps: Sequence[StepMeasurement], *, forward: bool
) -> Iterator[tuple[str, str]]:
    """Tiers that write too slowly for the forwards, or read too slowly for the backwards."""
    half, direction = ("forward", "write") if forward else ("backward", "read")
    room_seconds = median(
        sum(
            each.seconds
            for part, each in zip(schedule.program, step.halves, strict=True)
            if part.forward == forward
        )
        for step in steps
    )
    for tier in sorted({tier for step in steps for tier in step.flows}):
        tiers = [step.flows[tier] for step in steps if tier in step.flows]
        flows = [each.write if forward else each.read for each in tiers]
        nbytes, speed = median(flow.nbytes for flow in flows), median(flow.speed for flow in flows)
        if nbytes < LEAST_FLOW_BYTES or not room_seconds or speed * room_seconds >= nbytes:
            continue
        yield (
            f"{tier} {direction}",
            f"the {'drive' if tier == 'nvme' else 'host memory'} is too slow for the step: it "
            f"{direction}s {nbytes / MIB:.1f} MiB at {speed / GB:.2f} GB/s, beside {half}s that "
            f"compute for {room_seconds:.3f} s; {nbytes / room_seconds / GB:.2f} GB/s would hide "
            "that. Use a faster drive or several, or a higher budget, so that less moves",
        )


def _describe_unmoved(schedule: Schedule) -> str:
    speeds = " and ".join(
        f"{write / GB:.2f} GB/s to {tier} and {read / GB:.2f} back"
        for tier, (write, read) in schedule.bandwidths.items()
    )
    return (
        f"nothing is worth moving: all {schedule.saved_bytes / MIB:.1f} MiB that may move stay, as "
        f"moving any of it would slow down a step of {schedule.step_seconds:.3f} s, with {speeds}. "
        "If less memory is worth time, set memory_budget; else name a faster drive"
    )
