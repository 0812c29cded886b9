"""Comparison: medians over several steps of a program, and whether steps have changed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fxoffload.ops import OpEvent
from fxoffload.schedule import (
    LEAST_FLOW_BYTES,
    Flow,
    HalfMeasurement,
    Program,
    Schedule,
    StepMeasurement,
    TierFlow,
)

# How much must have changed before another schedule is made: seconds by a share, a smaller one when
# the first steps, which become faster, have settled; held bytes by a share of the peak; the speed
# of a tier by a factor; what transfers take from compute by a share; the bytes above the predicted
# peak by a share of it.
CHANGED_SECONDS = 0.1
SETTLED_SECONDS = 0.02
CHANGED_BYTES = 0.02
CHANGED_SPEED = 1.5
CHANGED_PRICE = 0.25
CHANGED_EXCESS = 0.002
# The largest share of the seconds of a step that is put down to its transfers.
MOST_TAKEN = 0.5


def find_medians(
    program: Program,
    records: Sequence[StepMeasurement],
    sampled: Sequence[StepMeasurement],
    price: float,
) -> list[HalfMeasurement]:
    """For each half of `program`, medians over `records`, and the maxima of bytes over `sampled`.

    The seconds are those of steps that were not sampled, if there are any, without what their
    transfers took from compute: `price` seconds for each byte.
    """
    undisturbed = [record for record in records if not record.sampled] or records
    timed = [_leave_out_transfers(record, price) for record in undisturbed]
    return [
        _join_halves(
            [record.halves[index] for record in records],
            [record.halves[index] for record in sampled],
            [each[index] for each in timed],
        )
        for index in range(len(program))
    ]


def _leave_out_transfers(step: StepMeasurement, price: float) -> Sequence[HalfMeasurement]:
    """The halves of a step without `price` seconds for each byte that it moved, spread evenly."""
    seconds = sum(half.seconds for half in step.halves)
    taken_seconds = min(price * step.moved_bytes, MOST_TAKEN * seconds)
    if not taken_seconds:
        return step.halves
    share = 1.0 - taken_seconds / seconds
    return [
        replace(
            half,
            clocks={event: share * clock for event, clock in half.clocks.items()},
            gap_seconds=share * half.gap_seconds,
        )
        for half in step.halves
    ]


def keep_sampled(before: StepMeasurement, latest: StepMeasurement) -> StepMeasurement:
    """The latest seconds without sampling, beside the latest live bytes that were sampled.

    Both steps followed the same schedule.
    """
    timed = before if latest.sampled and not before.sampled else latest
    seen = latest if latest.sampled else before
    pairs = zip(timed.halves, seen.halves, strict=True)
    return replace(timed, halves=[replace(a, live_bytes=b.live_bytes) for a, b in pairs])


def _join_halves(
    records: Sequence[HalfMeasurement],
    sampled: Sequence[HalfMeasurement],
    undisturbed: Sequence[HalfMeasurement],
) -> HalfMeasurement:
    """One measurement of a half from those of several steps; see find_medians."""
    return HalfMeasurement(
        clocks=_find_medians_by_op([record.clocks for record in undisturbed]),
        gap_seconds=statistics.median(record.gap_seconds for record in undisturbed),
        held_bytes=_find_median_bytes(record.held_bytes for record in records),
        # A sampler may miss a short peak, and never sees one that is not there.
        gap_bytes=max((r.gap_bytes for r in sampled if r.gap_bytes is not None), default=None),
        peak_bytes={
            event: max(record.peak_bytes.get(event, nbytes) for record in sampled)
            for each in sampled
            for event, nbytes in each.peak_bytes.items()
        },
        last_half=max((r.last_half for r in records if r.last_half is not None), default=None),
    )


def _find_medians_by_op(records: Sequence[Mapping[OpEvent, float]]) -> dict[OpEvent, float]:
    events = dict.fromkeys(event for record in records for event in record)
    return {
        event: statistics.median(record[event] for record in records if event in record)
        for event in events
    }


def _find_median_bytes(found: Iterable[int | None]) -> int | None:
    known = [nbytes for nbytes in found if nbytes is not None]
    return int(statistics.median(known)) if known else None


def differ(
    assumed: StepMeasurement,
    measured: StepMeasurement,
    schedule: Schedule | None,
    changed_seconds: float = CHANGED_SECONDS,
) -> bool:
    """Whether `measured` is so far from `assumed` that another schedule should be made by it.

    changed_seconds: by which share the seconds must differ.
    """
    pairs = list(zip(assumed.halves, measured.halves, strict=True))
    if assumed.sampled and not measured.sampled:
        return True  # Sampling made the assumed seconds longer.
    if assumed.owners != measured.owners or any(a.last_half != b.last_half for a, b in pairs):
        return True
    before, after = (sum(half.seconds for half in each.halves) for each in (assumed, measured))
    if abs(after - before) > changed_seconds * before:
        return True
    if differ_in_flows(assumed.flows, measured.flows) or differ_in_price(assumed, measured):
        return True
    if differ_in_base(assumed, measured.base_bytes, schedule):
        return True
    if schedule is None:
        return False
    if measured.excess_bytes - assumed.excess_bytes > CHANGED_EXCESS * schedule.peak_bytes:
        return True
    limit = CHANGED_BYTES * schedule.peak_bytes
    return any(
        abs((new.held_bytes or 0) - (old.held_bytes or 0)) > limit
        or (new.gap_bytes or 0) - (old.gap_bytes or 0) > limit
        for old, new in pairs
    )


def differ_in_base(
    assumed: StepMeasurement | None, base_bytes: int | None, schedule: Schedule | None
) -> bool:
    """Whether the bytes on the device before a step differ from the assumed ones."""
    if assumed is None or schedule is None:
        return False
    change = abs((base_bytes or 0) - (assumed.base_bytes or 0))
    return change > CHANGED_BYTES * schedule.peak_bytes


def differ_in_flows(then: Mapping[str, TierFlow], now: Mapping[str, TierFlow]) -> bool:
    """Whether a tier that moved something both times had another speed."""
    pairs = [
        (before, after)
        for tier in then.keys() & now.keys()
        for before, after in (
            (then[tier].write, now[tier].write),
            (then[tier].read, now[tier].read),
        )
    ]
    factors = [after.speed / before.speed for before, after in pairs if before.speed * after.speed]
    return any(not 1.0 / CHANGED_SPEED < factor < CHANGED_SPEED for factor in factors)


def differ_in_price(assumed: StepMeasurement, measured: StepMeasurement) -> bool:
    """Whether the compute time that a transferred byte takes has changed by CHANGED_PRICE."""
    if assumed.price is None or measured.price is None:
        return assumed.price is not measured.price
    change = abs(measured.price - assumed.price)
    return change > CHANGED_PRICE * max(assumed.price, measured.price)


def find_typical_flows(flows: Sequence[Mapping[str, TierFlow]]) -> dict[str, TierFlow]:
    """Of each tier and direction, the flow of middle speed among those that moved enough to tell.

    flows: of steps, by tier.
    """
    tiers = dict.fromkeys(tier for each in flows for tier in each)
    return {
        tier: TierFlow(
            _find_typical([each[tier].write for each in flows if tier in each]),
            _find_typical([each[tier].read for each in flows if tier in each]),
        )
        for tier in tiers
    }


def _find_typical(flows: Sequence[Flow]) -> Flow:
    """The flow of middle speed, of those that moved enough to tell; the slower of two."""
    known = sorted((f for f in flows if f.nbytes >= LEAST_FLOW_BYTES), key=lambda flow: flow.speed)
    return known[(len(known) - 1) // 2] if known else Flow()
