"""One event simulation of a training step over its transfers. Pure data, no torch.

    compute   node after node, forward then backward; waits where a release or a read is late
    links     for each tier a queue of writes and one of reads, each transfer behind the last
    memory    what the plan cannot move, kept values, and moved ones while they are on the device

It is used to plan, to explain, and to ask what other hardware would do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Literal

from fxoffload.planner.link import Link
from fxoffload.planner.plan import SavedValue
from fxoffload.planner.residences import find_residences, sum_residences
from fxoffload.planner.step import Residence, Step, Transfer
from fxoffload.sizes import UNLIMITED_BYTES

# Predictions that differ by a smaller share than this count as equal.
RESOLUTION = 0.01

EventKind = Literal["write", "read", "wait"]
NoteEvent = Callable[[EventKind, SavedValue, float, float], None]


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a step is predicted to take.

    live_bytes: on the device while each node runs. exposed_seconds: of waiting for transfers.
    contended_seconds: that transfers take from the compute beside them. forwarded_bytes: still in
    memory when they were asked for, so that nothing was read. written_positions: by value whose
    release does not block, the first node that starts when it has been written.
    """

    step_seconds: float
    exposed_seconds: float
    contended_seconds: float
    live_bytes: tuple[int, ...]
    written_bytes: int
    read_bytes: int
    forwarded_bytes: int
    written_positions: Mapping[str, int] = field(default_factory=dict[str, int])

    @property
    def peak_bytes(self) -> int:
        """The most that is on the device at once."""
        return max(self.live_bytes, default=0)

    @property
    def peak_position(self) -> int:
        """The first position at which the peak is reached."""
        return self.live_bytes.index(self.peak_bytes)


class _Channel:
    """Transfers of one direction of one tier, one after the other. start: of the latest one."""

    def __init__(self, bytes_per_second: float, latency_seconds: float) -> None:
        self.start = 0.0
        self._bytes_per_second = bytes_per_second
        self._latency_seconds = latency_seconds
        self._free = 0.0

    def add(self, now: float, nbytes: int) -> float:
        """When a transfer that is asked for `now` is done."""
        self.start = max(now, self._free)
        self._free = self.start + nbytes / self._bytes_per_second
        return self._free + self._latency_seconds


class EventLoop:
    """The nodes of a step, one after the other, and the transfers beside them.

    note: called for each transfer, and each wait of the compute for one, with its start and end in
    seconds. clock, exposed_seconds, contended_seconds: the sums so far. arrivals: when each
    position was reached, before the waits there. written: when the write of each value ends.
    """

    def __init__(
        self,
        step: Step,
        transfers: Mapping[str, Transfer],
        links: Mapping[str, Link],
        max_inflight_bytes: int,
        note: NoteEvent | None = None,
    ) -> None:
        self.clock = self.exposed_seconds = self.contended_seconds = 0.0
        self.arrivals: list[float] = []
        self.written: dict[str, float] = {}
        self.forwarded_bytes = 0
        self._step, self._transfers, self._links = step, transfers, links
        self._max_inflight_bytes = max_inflight_bytes
        self._note = note
        self._writes = {
            tier: _Channel(k.write_bytes_per_second, k.latency_seconds) for tier, k in links.items()
        }
        self._reads = {
            tier: _Channel(k.read_bytes_per_second, k.latency_seconds) for tier, k in links.items()
        }
        self._read: dict[str, float] = {}
        self._inflight: list[tuple[float, int]] = []
        self._inflight_bytes = 0

    def run(self) -> Simulation:
        """Run the nodes in order; called once."""
        offloads, releases, prefetches, waits = _index_events(self._step, self._transfers)
        busy = offloads.keys() | releases.keys() | prefetches.keys() | waits.keys()
        for position, seconds in enumerate(self._step.seconds):
            self.arrivals.append(self.clock)
            if position not in busy:
                self.clock += seconds
                continue
            for value in releases.get(position, ()):
                self._wait(value, self.written[value.name])
            for value in prefetches.get(position, ()):
                self._start_read(value)
            for value in waits.get(position, ()):
                self._wait(value, self._read[value.name])
            self.clock += seconds
            for value in offloads.get(position, ()):
                self._start_write(value)
        return self._sum_up()

    def _sum_up(self) -> Simulation:
        step, transfers = self._step, self._transfers
        moved = [value for value in step.values if value.name in transfers]
        read_bytes = sum(value.nbytes for value in moved if value.is_read)
        residences = find_residences(step, transfers, self.arrivals, self.written)
        return Simulation(
            step_seconds=self.clock,
            exposed_seconds=self.exposed_seconds,
            contended_seconds=self.contended_seconds,
            live_bytes=sum_residences(step, residences),
            written_bytes=sum(value.nbytes for value in moved),
            read_bytes=read_bytes - self.forwarded_bytes,
            forwarded_bytes=self.forwarded_bytes,
            written_positions={
                name: bisect_left(self.arrivals, self.written[name])
                for name, transfer in transfers.items()
                if transfer.release is None
            },
        )

    def _wait(self, value: SavedValue, end: float) -> None:
        if end > self.clock:
            if self._note is not None:
                self._note("wait", value, self.clock, end)
            self.exposed_seconds += end - self.clock
            self.clock = end

    def _take_from_compute(self, value: SavedValue, link: Link) -> None:
        taken = link.compute_seconds_per_byte * value.nbytes
        self.contended_seconds += taken
        self.clock += taken

    def _start_read(self, value: SavedValue) -> None:
        if self.written[value.name] > self.clock:  # Still in memory: nothing is read.
            self.forwarded_bytes += value.nbytes
            self._read[value.name] = self.clock
            return
        tier = self._transfers[value.name].tier
        self._take_from_compute(value, self._links[tier])
        end = self._read[value.name] = self._reads[tier].add(self.clock, value.nbytes)
        if self._note is not None:
            self._note("read", value, self._reads[tier].start, end)

    def _start_write(self, value: SavedValue) -> None:
        while self._inflight and (
            self._inflight[0][0] <= self.clock
            or self._inflight_bytes + value.nbytes > self._max_inflight_bytes
        ):
            end, nbytes = heappop(self._inflight)
            self._inflight_bytes -= nbytes
            self._wait(value, end)
        tier = self._transfers[value.name].tier
        self._take_from_compute(value, self._links[tier])
        end = self.written[value.name] = self._writes[tier].add(self.clock, value.nbytes)
        heappush(self._inflight, (end, value.nbytes))
        self._inflight_bytes += value.nbytes
        if self._note is not None:
            self._note("write", value, self._writes[tier].start, end)


def simulate(
    step: Step,
    transfers: Mapping[str, Transfer],
    links: Mapping[str, Link],
    *,
    max_inflight_bytes: int = UNLIMITED_BYTES,
) -> Simulation:
    """Run `step` with `transfers` (by name of value) over `links` (by tier)."""
    return EventLoop(step, transfers, links, max_inflight_bytes).run()


def find_holders(
    step: Step, simulation: Simulation, transfers: Mapping[str, Transfer]
) -> list[Residence]:
    """What lives at the peak, largest first."""
    arrivals = [0.0] * len(step.seconds)
    written = dict.fromkeys(transfers, 0.0)
    position = simulation.peak_position
    live = [
        residence
        for residence in (*step.fixed, *find_residences(step, transfers, arrivals, written))
        if residence.first <= position <= residence.last
    ]
    return sorted(live, key=lambda residence: (-residence.nbytes, residence.name))


def _index_events(
    step: Step, transfers: Mapping[str, Transfer]
) -> tuple[dict[int, list[SavedValue]], ...]:
    """Offloads, releases, prefetches and waits by position, each in the order of the graph."""
    offloads: dict[int, list[SavedValue]] = {}
    releases: dict[int, list[SavedValue]] = {}
    prefetches: dict[int, list[SavedValue]] = {}
    waits: dict[int, list[SavedValue]] = {}
    for value in step.values:
        transfer = transfers.get(value.name)
        if transfer is None:
            continue
        offloads.setdefault(value.born, []).append(value)
        if transfer.release is not None:
            releases.setdefault(transfer.release, []).append(value)
    for value in sorted(step.values, key=step.first_use):
        transfer = transfers.get(value.name)
        if transfer is not None and value.is_read:
            prefetches.setdefault(transfer.prefetch, []).append(value)
            waits.setdefault(step.first_use(value), []).append(value)
    return offloads, releases, prefetches, waits
