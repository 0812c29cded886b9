"""What the walks of placement carry along: writes that outlast a forward, reads under way.

placement walks through a step twice, forwards for the writes and backwards for the reads.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import accumulate

from fxoffload.planner.link import Link
from fxoffload.planner.plan import SavedValue, Tier
from fxoffload.planner.step import Phase, Step


class Tail:
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


class Reads:
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

    def start(self, position: int, room_bytes: int, tail: Tail | None) -> Iterator[str]:
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
