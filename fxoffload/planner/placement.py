"""Placement: where each release and each prefetch of a set of moved values stands. Pure data.

    forward    a release stands where its write is done; earlier, so that it blocks, only where the
               budget would be exceeded otherwise
    backward   the same with time running backwards: a prefetch stands as late as its read allows,
               and later only where the budget would be exceeded otherwise

Writes queue in the order of birth and reads in the order of first use, so both walks are greedy
and each is the best for its half. Seconds are estimates: every transfer is given `margin` times its
own. Where they are too low, the store waits: later, never wrong.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import accumulate

from fxoffload.planner.link import Link
from fxoffload.planner.plan import SavedValue, Tier
from fxoffload.planner.simulation import Phase, Step, Transfer, find_working_sets

MARGIN = 2.0


def place_transfers(
    step: Step,
    tiers: Mapping[str, Tier],
    links: Mapping[str, Link],
    *,
    budget_bytes: int | None = None,
    held_bytes: int | None = None,
    max_inflight_bytes: int = 2**62,
    margin: float = MARGIN,
) -> dict[str, Transfer]:
    """A Transfer for each value that `tiers` names.

    budget_bytes: what may be on the device at once; None is no limit. It is kept wherever the
    values in use leave room for it. held_bytes: the same for the end of the forward.
    max_inflight_bytes: bound of the bytes being read ahead.
    """
    moved = [value for value in step.values if value.name in tiers]
    working_sets = find_working_sets(step, set(tiers))
    limit = 2**62 if budget_bytes is None else budget_bytes
    room_bytes = [limit - nbytes for nbytes in working_sets]
    if held_bytes is not None:
        end = step.forward_length - 1
        room_bytes[end] = min(room_bytes[end], held_bytes - working_sets[end])
    slow = {
        tier: Link(
            link.write_bytes_per_second / margin,
            link.read_bytes_per_second / margin,
            link.latency_seconds * margin,
        )
        for tier, link in links.items()
    }
    releases, unwritten_bytes, tails = _place_releases(step, moved, tiers, slow, room_bytes)
    prefetches = _place_prefetches(
        step,
        moved,
        tiers,
        slow,
        [room - held for room, held in zip(room_bytes, unwritten_bytes, strict=True)],
        tails,
        max_inflight_bytes=max_inflight_bytes,
    )
    for tail in tails:
        releases |= dict.fromkeys(tail.find_waited(), tail.first)
    if budget_bytes is None and held_bytes is None:
        releases = dict.fromkeys(releases, None)  # Whatever a write takes, there is room for it.
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


class _Tail:
    """Writes that are not done when a phase turns: the first ones may be waited for, right there.

    The rest stays in memory until it is written, while the backwards run. first: the last position
    of the forwards.
    """

    def __init__(
        self,
        step: Step,
        phase: Phase,
        writes: Sequence[tuple[float, str, int]],
        clock: float,
    ) -> None:
        self.first = phase.turn - 1
        self._writes = sorted(writes)
        self._ends = [end for end, _, _ in self._writes]
        self._bytes = [0, *accumulate(nbytes for _, _, nbytes in self._writes)]
        self._elapsed = [0.0, *accumulate(step.seconds[self.first : phase.end])]
        self._clock = clock
        self._waited = 0

    @property
    def end(self) -> float:
        """The clock when the phase ends."""
        return self._clock + self._elapsed[-1]

    @property
    def left(self) -> list[tuple[float, str, int]]:
        """The writes that are not done when the phase ends."""
        return [write for write in self._writes[self._waited :] if write[0] > self.end]

    def find_waited(self) -> list[str]:
        """Names of what is waited for."""
        return [name for _, name, _ in self._writes[: self._waited]]

    def held_bytes(self, position: int) -> int:
        """Bytes in memory when `position` is reached."""
        return self._held_bytes(position, self._clock, self._waited)

    def wait_seconds(self, position: int, room_bytes: int) -> float:
        """What the forward has to wait so that no more than `room_bytes` are held there."""
        count = self._count_waited(position, room_bytes)
        return max(self._clock, self._ends[count - 1]) - self._clock if count else 0.0

    def wait(self, position: int, room_bytes: int) -> None:
        """Wait for that."""
        self._waited = self._count_waited(position, room_bytes)
        if self._waited:
            self._clock = max(self._clock, self._ends[self._waited - 1])

    def _count_waited(self, position: int, room_bytes: int) -> int:
        count, clock = self._waited, self._clock
        while count < len(self._ends) and self._held_bytes(position, clock, count) > room_bytes:
            clock = max(clock, self._ends[count])
            count += 1
        return count

    def _held_bytes(self, position: int, clock: float, waited: int) -> int:
        arrival = clock + self._elapsed[position - self.first]
        done = bisect_right(self._ends, arrival) if position > self.first else 0
        return self._bytes[-1] - self._bytes[max(done, waited)]


def _place_releases(
    step: Step,
    moved: Sequence[SavedValue],
    tiers: Mapping[str, Tier],
    links: Mapping[str, Link],
    room_bytes: Sequence[int],
) -> tuple[dict[str, int | None], list[int], list[_Tail]]:
    """Positions by name; bytes that nobody reads any more, in the forwards; a tail for each phase.

    room_bytes: what values that nobody reads any more may take at each position.
    """
    born = _group(moved, [value.born for value in moved])
    dead = _group(moved, [value.last_use + 1 for value in moved])
    first_uses = {value.name: step.first_use(value) for value in moved}
    releases: dict[str, int | None] = dict.fromkeys(first_uses)
    unwritten_bytes = [0] * len(step.seconds)
    tails: list[_Tail] = []
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
        tail = _Tail(step, phase, pending, arrival)
        for position in range(phase.turn - 1, phase.end):
            if not tail.held_bytes(position):
                break
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
    links: Mapping[str, Link],
    room_bytes: Sequence[int],
    tails: Sequence[_Tail],
    *,
    max_inflight_bytes: int,
) -> dict[str, int]:
    """Positions by name; lets forwards wait for writes of their tail where that is the cheaper.

    room_bytes: what values that nobody reads yet may take at each position, and in the backwards
    those that nobody reads any more.
    """
    first_uses = _group(moved, [step.first_use(value) for value in moved])
    start = step.phases[0].turn + step.backward_inputs
    reads = _Reads(links, max_inflight_bytes)
    prefetches = {value.name: start for value in moved}
    for phase, tail in zip(reversed(step.phases), reversed(tails), strict=True):
        for position in reversed(range(phase.start, phase.end)):
            if position == start - 1:
                return prefetches
            in_backward = position >= tail.first
            for name in reads.start(position, room_bytes[position], tail if in_backward else None):
                prefetches[name] = position + 1
            reads.clock += step.seconds[position]
            used = first_uses.get(position, ())
            excess = reads.nbytes + sum(v.nbytes for v in used) - room_bytes[position - 1]
            for value in _order_reads(used, excess):
                reads.add(value, tiers[value.name])
    return prefetches


class _Reads:
    """Reads on their way in the walk from the end of the step to its start.

    clock: seconds before the end of the step. nbytes: that have been read and not been used.
    """

    def __init__(self, links: Mapping[str, Link], max_inflight_bytes: int) -> None:
        self.clock = 0.0
        self.nbytes = 0
        self._links = links
        self._max_inflight_bytes = max_inflight_bytes
        self._free = dict.fromkeys(links, 0.0)
        self._pending: list[tuple[float, str, int]] = []

    def add(self, value: SavedValue, tier: Tier) -> None:
        """The value is used at the clock, and must have been read by then."""
        link = self._links[tier]
        self._free[tier] = max(self.clock, self._free[tier]) + link.read_seconds(value.nbytes)
        end = self._free[tier] + link.latency_seconds
        heappush(self._pending, (end, value.name, value.nbytes))
        self.nbytes += value.nbytes

    def start(self, position: int, room_bytes: int, tail: _Tail | None) -> Iterator[str]:
        """What is to be started behind `position`, and not in front of it.

        That is what has been long enough on its way, and what there is no room for.
        """
        while self._pending:
            end, name, nbytes = self._pending[0]
            held_bytes = 0 if tail is None else tail.held_bytes(position)
            if end > self.clock and self.nbytes <= min(
                room_bytes - held_bytes, self._max_inflight_bytes
            ):
                return
            read_seconds = max(0.0, end - self.clock)
            room = room_bytes - self.nbytes
            if (
                tail is not None
                and self.nbytes <= min(room_bytes, self._max_inflight_bytes)
                and tail.wait_seconds(position, room) < read_seconds
            ):
                tail.wait(position, room)
                continue
            self.clock += read_seconds
            self.nbytes -= nbytes
            heappop(self._pending)
            yield name


def _order_reads(values: Sequence[SavedValue], excess: int) -> list[SavedValue]:
    """What one node reads, the last read first: these come late, and so make up for `excess` bytes.

    As few bytes of them as may be, as they keep the node waiting.
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
