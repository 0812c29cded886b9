"""The state of placement's walks: writes that outlast a forward, and reads in progress.

placement walks through a step twice, forwards for the writes and backwards for the reads.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate
from typing import NamedTuple

from fxoffload.planner.link import Link
from fxoffload.planner.plan import SavedValue, Tier
from fxoffload.planner.step import Phase, Step


class Tail:
    """Writes that have not ended when a phase turns from forwards to backwards.

    The forwards may wait for the first of them at their last position, `first`. The others stay in
    memory until they have ended, while the backwards run.
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
        """Names of the values whose writes the forwards wait for."""
        return [name for _, name, _ in self._writes[: self._waited]]

    def held_bytes(self, position: int) -> int:
        """Bytes in memory when `position` is reached."""
        if self._waited == len(self._ends):
            return 0
        return self._held_bytes(position, self._clock, self._waited)

    def wait_seconds(self, position: int, room_bytes: int) -> float:
        """Seconds that the forwards must wait for at most `room_bytes` to be held at `position`."""
        count = self._count_waited(position, room_bytes)
        return max(self._clock, self._ends[count - 1]) - self._clock if count else 0.0

    def wait(self, position: int, room_bytes: int) -> None:
        """Let the forwards wait until at most `room_bytes` are held at `position`."""
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


class _Read(NamedTuple):
    """A read in progress; times run backwards, from `ready`, when its value is used, to `end`."""

    end: float
    name: str
    nbytes: int
    ready: float
    tier: Tier


class Reads:
    """Reads in progress in the walk from the end of the step to its start.

    clock: seconds before the end of the step. nbytes: of these reads, whose memory is allocated.
    overtakes: whether small reads may come later than large ones that are used later.
    """

    def __init__(
        self, links: Mapping[str, Link], max_inflight_bytes: int, *, overtakes: bool = False
    ) -> None:
        self.clock = 0.0
        self.nbytes = 0
        self._links = links
        self._max_inflight_bytes = max_inflight_bytes
        self._overtakes = overtakes
        self._free = dict.fromkeys(links, 0.0)
        self._pending: list[_Read] = []
        self._overtaken: set[str] = set()

    def add(self, value: SavedValue, tier: Tier) -> None:
        """Add the read of a value that is used at the clock, by when it must have ended."""
        heappush(self._pending, self._queue(value.name, value.nbytes, self.clock, tier))
        self.nbytes += value.nbytes

    def _queue(self, name: str, nbytes: int, ready: float, tier: Tier) -> _Read:
        link = self._links[tier]
        self._free[tier] = max(ready, self._free[tier]) + link.read_seconds(nbytes)
        return _Read(self._free[tier] + link.latency_seconds, name, nbytes, ready, tier)

    def start(self, position: int, room_bytes: int, tail: Tail | None) -> list[str]:
        """Names of the reads that start behind `position`, not in front of it.

        These are the reads that need no more time, and those for which there is no room.
        """
        started: list[str] = []
        while self._pending:
            if self._pending[0].end > self.clock:
                held_bytes = 0 if tail is None else tail.held_bytes(position)
                excess = self.nbytes - min(room_bytes - held_bytes, self._max_inflight_bytes)
                if excess <= 0:
                    break
                if self._overtakes:
                    self._overtake(excess)
            end, name, nbytes, _, _ = self._pending[0]
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
            started.append(name)
        return started

    def _overtake(self, excess: int) -> None:
        """Put a read that makes up for `excess` in front of its queue, if it ends sooner there.

        Walking backwards, the large value in front is read later then: it starts earlier in the
        step, and the small one, for which there is no room yet, behind it. This happens to a value
        once, as it takes memory meanwhile.
        """
        first = self._pending[0]
        link = self._links[first.tier]
        start = first.end - link.latency_seconds - link.read_seconds(first.nbytes)

        def find_end(read: _Read) -> float:
            begin = max(start, read.ready)
            return begin + link.read_seconds(read.nbytes) + link.latency_seconds

        enough = [
            read
            for read in self._pending
            if read.tier == first.tier and read.nbytes >= excess and find_end(read) < first.end
        ]
        if not enough or first.name in self._overtaken:
            return
        self._overtaken.add(first.name)
        best = min(enough, key=lambda read: (find_end(read), read.name))
        queue = sorted(read for read in self._pending if read.tier == first.tier)
        queue.remove(best)
        self._pending = [read for read in self._pending if read.tier != first.tier]
        self._free[first.tier] = start
        for read in (best, *queue):
            self._pending.append(self._queue(read.name, read.nbytes, read.ready, read.tier))
        heapify(self._pending)
