"""Placement: where each release and each prefetch of a set of moved values stands. Pure data.

    forward    a release stands where its write is done; earlier, so that it blocks, only where the
               budget would be exceeded otherwise
    backward   the same with time running backwards: a prefetch stands as late as its read allows,
               and later only where the budget would be exceeded otherwise

Writes queue in the order of birth and reads in the order of first use, so both walks are greedy
and each is the best for its half. Seconds are estimates. If they are too low, the store waits, and
the step takes longer; `slack` moves the places to where this costs least.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush

from fxoffload.planner.link import Link
from fxoffload.planner.plan import SavedValue, Tier
from fxoffload.planner.residences import find_working_sets
from fxoffload.planner.step import Step, Transfer
from fxoffload.planner.walks import Reads, Tail
from fxoffload.sizes import UNLIMITED_BYTES


def place_transfers(
    step: Step,
    tiers: Mapping[str, Tier],
    links: Mapping[str, Link],
    *,
    budget_bytes: int | None = None,
    held_bytes: int | None = None,
    max_inflight_bytes: int = UNLIMITED_BYTES,
    overtakes: bool = False,
) -> dict[str, Transfer]:
    """A Transfer for each value that `tiers` names.

    budget_bytes: what may be on the device at once; None is no limit. It is kept wherever the
    values in use leave room for it. held_bytes: the same for the end of the forward.
    max_inflight_bytes: bound of the bytes being read ahead. overtakes: see Reads.
    """
    moved = [value for value in step.values if value.name in tiers]
    working_sets = find_working_sets(step, set(tiers))
    limit = UNLIMITED_BYTES if budget_bytes is None else budget_bytes
    room_bytes = [limit - nbytes for nbytes in working_sets]
    if held_bytes is not None:
        end = step.forward_length - 1
        room_bytes[end] = min(room_bytes[end], held_bytes - working_sets[end])
    releases, unwritten_bytes, tails = _place_releases(step, moved, tiers, links, room_bytes)
    prefetches = _place_prefetches(
        step,
        moved,
        tiers,
        [room - held for room, held in zip(room_bytes, unwritten_bytes, strict=True)],
        tails,
        Reads(links, max_inflight_bytes, overtakes=overtakes),
    )
    for tail in tails:
        releases |= dict.fromkeys(tail.find_waited(), tail.first)
    if budget_bytes is None and held_bytes is None:
        releases = dict.fromkeys(releases, None)  # Without a limit, nothing waits for a write.
    found = {
        value.name: Transfer(tiers[value.name], releases[value.name], prefetches[value.name])
        for value in moved
    }
    return found if step.stops is None else _round_to_stops(step, moved, found, step.stops)


def _round_to_stops(
    step: Step,
    moved: Sequence[SavedValue],
    transfers: Mapping[str, Transfer],
    stops: Sequence[int],
) -> dict[str, Transfer]:
    """Releases earlier and prefetches later, so that no more memory is taken than was planned.

    A release stays behind the last reader, and a prefetch in front of the first one.
    """
    found: dict[str, Transfer] = {}
    for value in moved:
        transfer = transfers[value.name]
        release, first_use = transfer.release, step.first_use(value)
        if release is not None:
            index = bisect_right(stops, release)
            release = max(value.last_use + 1, stops[index - 1] if index else 0)
        index = bisect_left(stops, transfer.prefetch)
        prefetch = min(first_use, stops[index] if index < len(stops) else first_use)
        found[value.name] = Transfer(transfer.tier, release, prefetch)
    return found


def _place_releases(
    step: Step,
    moved: Sequence[SavedValue],
    tiers: Mapping[str, Tier],
    links: Mapping[str, Link],
    room_bytes: Sequence[int],
) -> tuple[dict[str, int | None], list[int], list[Tail]]:
    """Release positions by name, bytes that wait to be written by position, a tail for each phase.

    room_bytes: what values may take at each position after their last forward reader.
    """
    born = _group(moved, [value.born for value in moved])
    dead = _group(moved, [value.last_use + 1 for value in moved])
    first_uses = {value.name: step.first_use(value) for value in moved}
    releases: dict[str, int | None] = dict.fromkeys(first_uses)
    unwritten_bytes = [0] * len(step.seconds)
    tails: list[Tail] = []
    ends: dict[str, float] = {}
    free = dict.fromkeys(links, 0.0)
    clock = 0.0
    pending: list[tuple[float, str, int]] = []
    pending_bytes = 0
    for phase in step.phases:
        arrival = clock
        for position in range(phase.start, phase.turn):
            arrival = clock
            for value in dead.get(position, ()):
                heappush(pending, (ends[value.name], value.name, value.nbytes))
                pending_bytes += value.nbytes
            # No op may stand between the placeholders; in front of the last node, the tail waits.
            while pending and step.forward_inputs <= position < phase.turn - 1:
                end, name, nbytes = pending[0]
                if end > clock and pending_bytes <= room_bytes[position]:
                    break
                clock = max(clock, end)
                releases[name] = position
                pending_bytes -= nbytes
                heappop(pending)
            if position < phase.turn - 1:
                unwritten_bytes[position] = pending_bytes
            clock += step.seconds[position]
            for value in born.get(position, ()):
                tier = tiers[value.name]
                free[tier] = max(clock, free[tier]) + links[tier].write_seconds(value.nbytes)
                ends[value.name] = free[tier] + links[tier].latency_seconds
        last = dead.get(phase.turn, ())
        pending += [(ends[value.name], value.name, value.nbytes) for value in last]
        tail = Tail(step, phase, pending, arrival)
        for position in range(phase.turn - 1, phase.end):
            held_bytes = tail.held_bytes(position)
            if not held_bytes:
                break
            if held_bytes > room_bytes[position]:
                tail.wait(position, room_bytes[position])
        tails.append(tail)
        clock = tail.end
        pending = [write for write in tail.left if first_uses[write[1]] >= phase.end]
        pending_bytes = sum(nbytes for _, _, nbytes in pending)
    return releases, unwritten_bytes, tails


def _place_prefetches(
    step: Step,
    moved: Sequence[SavedValue],
    tiers: Mapping[str, Tier],
    room_bytes: Sequence[int],
    tails: Sequence[Tail],
    reads: Reads,
) -> dict[str, int]:
    """Prefetch positions by name; forwards wait for writes of their tail if that is the cheaper.

    room_bytes: what values may take at each position before their first backward reader. In the
    backwards, values whose write has not ended take their part of it.
    """
    read = [value for value in moved if value.is_read]
    first_uses = _group(read, [step.first_use(value) for value in read])
    start = step.phases[0].turn + step.backward_inputs
    prefetches = {value.name: start if value.is_read else step.first_use(value) for value in moved}
    for phase, tail in zip(reversed(step.phases), reversed(tails), strict=True):
        for position in reversed(range(phase.start, phase.end)):
            if position == start - 1:
                return prefetches
            in_backward = position >= tail.first
            if reads.nbytes:
                found = reads.start(position, room_bytes[position], tail if in_backward else None)
                prefetches |= dict.fromkeys(found, position + 1)
            reads.clock += step.seconds[position]
            if used := first_uses.get(position):
                excess = reads.nbytes + sum(v.nbytes for v in used) - room_bytes[position - 1]
                for value in _order_reads(used, excess):
                    reads.add(value, tiers[value.name])
    return prefetches


def _order_reads(values: Sequence[SavedValue], excess: int) -> list[SavedValue]:
    """The values that one node reads, in the reverse order of their reads.

    The first ones are read so late that `excess` bytes are free until then. They are as small as
    possible, as the node waits for them.
    """
    rest = sorted(values, key=lambda value: (value.nbytes, value.name))
    order: list[SavedValue] = []
    while rest and excess > 0:
        enough = (index for index, value in enumerate(rest) if value.nbytes >= excess)
        order.append(rest.pop(next(enough, -1)))
        excess -= order[-1].nbytes
    return order + rest


def _group(values: Sequence[SavedValue], positions: Sequence[int]) -> dict[int, list[SavedValue]]:
    groups: dict[int, list[SavedValue]] = {}
    for value, position in zip(values, positions, strict=True):
        groups.setdefault(position, []).append(value)
    return groups
