"""The linear program whose optimum bounds all plans of a step: values can be divided at will.

    values      any number of bytes of each moves, in pieces of any size
    links       for each tier a queue of writes and one of reads, at full bandwidth, no latency
    waits       of any length, in front of every node
    memory      at every node no more than the peak

Every result of `simulate` is a solution, with the same waits and no higher peak, so the optimum
bounds all of them from below. Memory counts bytes, whatever value they belong to, so for each tier
and node two variables are enough:

    written     bytes that have left the device before the node starts
    unread      bytes that come back after the node is done

A byte that moves is one of them or both, as it is read after it is written. So `written + unread -
moved` bytes are away from the device while the node runs, `moved` being all bytes that move at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from fxoffload.planner.linear_program import LinearProgram, Term
from fxoffload.planner.link import Link
from fxoffload.planner.moments import Moment, count_bytes, find_moments
from fxoffload.planner.plan import SavedValue
from fxoffload.planner.step import Step


@dataclass(frozen=True, slots=True)
class Fluid:
    """The program of a step. Bytes are shares of `unit_bytes`, seconds of `unit_seconds`.

    peak: the variable of the peak. waits: the variables of seconds without compute.
    """

    program: LinearProgram
    unit_bytes: float
    unit_seconds: float
    peak: int
    waits: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Stop:
    """A moment as a queue meets it: writes from the start of the step, reads from its end.

    wait, gap_seconds: waiting and compute since the stop before; wait is None for the first read,
    as nothing is read after the last moment. seconds: of the node. joining: variables of the bytes
    that the queue may move after the node.
    """

    wait: int | None
    gap_seconds: float
    seconds: float
    joining: Sequence[int]


def build_fluid(
    step: Step,
    links: Mapping[str, Link],
    *,
    peak_bytes: float,
    may_be_higher: bool = False,
    host_bytes: int = 0,
) -> Fluid:
    """The program of `step`, whose peak is `peak_bytes`, or higher if it may be.

    A backward must read each value of `step` that may move: all that moves comes back here.
    host_bytes: capacity of the host tier.
    """
    unread = [value.name for value in step.movable if not value.is_read]
    assert not unread, f"no backward reads {unread}"
    moments = find_moments(step, peak_bytes)
    unit_bytes = float(max((moment.live_bytes for moment in moments), default=0)) or 1.0
    program = LinearProgram()
    fluid = Fluid(
        program,
        unit_bytes,
        step.compute_seconds or 1.0,
        program.add_variable(
            peak_bytes / unit_bytes, inf if may_be_higher else peak_bytes / unit_bytes
        ),
        [program.add_variable() for _ in moments],
    )
    tiers = [tier for tier in links if tier != "host" or host_bytes > 0]
    shares = [{v.name: program.add_variable() for v in step.movable} for _ in tiers]
    for value in step.movable:
        terms = [(share[value.name], 1.0) for share in shares]
        program.require(terms, upper=count_bytes(value) / unit_bytes)
    away: list[list[Term]] = [[] for _ in moments]
    dead: list[list[Term]] = [[] for _ in moments]
    for tier, share in zip(tiers, shares, strict=True):
        total = _add_sum(program, [*share.values()])
        _add_contention(fluid, step, moments, share, total, links[tier])
        written, unread = _add_queues(fluid, step, moments, share, links[tier])
        read_on = _add_read_on(program, step, moments, share)
        for index, pair in enumerate(zip(written, unread, strict=True)):
            terms = [*((variable, 1.0) for variable in pair), (total, -1.0)]
            if tier == "host":
                program.require(terms, upper=host_bytes / unit_bytes)
            away[index] += terms
            # What the forward still reads is not away, even where it is written.
            dead[index] += [(unread[index], 1.0), *((v, -1.0) for v in read_on[index])]
    for moment, *found in zip(moments, away, dead, strict=True):
        if moment.live_bytes > peak_bytes:
            for terms in found:
                need = moment.live_bytes / unit_bytes
                program.require([*terms, (fluid.peak, 1.0)], lower=need)
    return fluid


def _add_queues(
    fluid: Fluid, step: Step, moments: Sequence[Moment], share: Mapping[str, int], link: Link
) -> tuple[list[int], list[int]]:
    """Variables of what is written before each moment, and of what is unread behind it."""
    born = _group(step, share, lambda value: value.born)
    used = _group(step, share, step.first_use)
    gaps = [moment.gap_seconds for moment in moments]
    writes = [
        _Stop(wait, gap, moment.seconds, born.get(moment.position, ()))
        for moment, wait, gap in zip(moments, fluid.waits, gaps, strict=True)
    ]
    following = zip([*fluid.waits[1:], None], [*gaps[1:], 0.0], strict=True)
    reads = [
        _Stop(wait, gap, moment.seconds, used.get(moment.position, ()))
        for moment, (wait, gap) in zip(moments, following, strict=True)
    ]
    scale = fluid.unit_seconds / fluid.unit_bytes
    written = _add_queue(fluid, writes, link.write_bytes_per_second * scale)
    unread = _add_queue(fluid, reads[::-1], link.read_bytes_per_second * scale)
    return written, unread[::-1]


def _add_queue(fluid: Fluid, stops: Sequence[_Stop], speed: float) -> list[int]:
    """Variables of the bytes that a queue has moved when it meets each stop.

    They are at most what it had moved before and what it moves in the time since then, and what has
    joined it. speed: shares of bytes in a unit of time.
    """
    program, met = fluid.program, list[int]()
    joined = before = program.add_variable(upper=0.0)
    compute_seconds = 0.0
    for stop in stops:
        start = program.add_variable()
        compute = speed * (compute_seconds + stop.gap_seconds) / fluid.unit_seconds
        if before != joined and stop.wait is not None:  # Else nothing has joined the queue yet.
            program.require([(start, 1.0), (before, -1.0), (stop.wait, -speed)], upper=compute)
        program.require([(start, 1.0), (joined, -1.0)], upper=0.0)
        met.append(start)
        before, compute_seconds = start, stop.seconds
        if stop.joining:
            before = program.add_variable()
            compute = speed * stop.seconds / fluid.unit_seconds
            program.require([(before, 1.0), (start, -1.0)], upper=compute)
            program.require([(before, 1.0), (joined, -1.0)], upper=0.0)
            joined = _add_sum(program, [joined, *stop.joining])
            compute_seconds = 0.0
    return met


def _add_read_on(
    program: LinearProgram, step: Step, moments: Sequence[Moment], share: Mapping[str, int]
) -> list[list[int]]:
    """For each moment, the variable of the bytes that the forward still reads, there or later."""
    last = _group(step, share, lambda value: value.last_use)
    order = sorted(last, reverse=True)
    found: list[list[int]] = []
    sums: list[int] = []
    for moment in reversed(moments):
        while order and order[0] >= moment.position:
            sums = [_add_sum(program, [*sums, *last[order.pop(0)]])]
        found.append(sums)
    return found[::-1]


def _add_contention(
    fluid: Fluid,
    step: Step,
    moments: Sequence[Moment],
    share: Mapping[str, int],
    total: int,
    link: Link,
) -> None:
    """Require waits of at least the compute time that transfers take; writes follow the births."""
    taken = link.compute_seconds_per_byte * fluid.unit_bytes / fluid.unit_seconds
    if taken == 0.0:
        return
    born = _group(step, share, lambda value: value.born)
    for moment, wait in zip(moments, fluid.waits[1:], strict=False):
        here = [(variable, -taken) for variable in born.get(moment.position, ())]
        if here:
            fluid.program.require([(wait, 1.0), *here], lower=0.0)
    waits = [(wait, 1.0) for wait in fluid.waits]
    fluid.program.require([*waits, (total, -2.0 * taken)], lower=0.0)


def _add_sum(program: LinearProgram, parts: Sequence[int]) -> int:
    total = program.add_variable()
    program.require([(total, -1.0), *((part, 1.0) for part in parts)], lower=0.0, upper=0.0)
    return total


def _group(
    step: Step, share: Mapping[str, int], place: Callable[[SavedValue], int]
) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for value in step.movable:
        groups.setdefault(place(value), []).append(share[value.name])
    return groups
