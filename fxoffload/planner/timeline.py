"""Timeline: when the compute, the transfers and the waits of a scheduled step are predicted to be.

    schedule    what each op does: `read_transfers` finds the transfers that this means
    replay      the event simulation once more, which notes what it does instead of adding it up

`simulate` runs thousands of times in a search, so it notes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Literal

from fxoffload.planner.joining import JoinedStep
from fxoffload.planner.link import Link
from fxoffload.planner.plan import SavedValue
from fxoffload.planner.simulation import Step, Transfer, _Channel, _index_events
from fxoffload.schedule import Schedule

Kind = Literal["write", "read", "wait"]


@dataclass(frozen=True, slots=True)
class TimedTransfer:
    """A transfer of a value, or the compute waiting for it, from `start` to `end` in seconds."""

    kind: Kind
    value: str
    tier: str
    nbytes: int
    start: float
    end: float


@dataclass(slots=True)
class Timeline:
    """arrivals: when each position is reached, before what is waited for there; then the end."""

    arrivals: list[float] = field(default_factory=list[float])
    transfers: list[TimedTransfer] = field(default_factory=list[TimedTransfer])

    @property
    def step_seconds(self) -> float:
        """Of the whole step."""
        return self.arrivals[-1]

    @property
    def exposed_seconds(self) -> float:
        """Of all waits."""
        return sum(each.end - each.start for each in self.transfers if each.kind == "wait")


def read_transfers(joined: JoinedStep, schedule: Schedule) -> dict[str, Transfer]:
    """The transfers, by name of value in `joined`, that the ops of `schedule` bring about."""
    positions = {(op.call, op.event): op.position for op in joined.ops}
    step = joined.step
    waited: dict[tuple[int, str], int] = {}
    started: dict[tuple[int, str], int] = {}
    for call, each in enumerate(schedule.calls):
        for events, found in ((each.waits, waited), (each.reads, started)):
            for event, values in events.items():
                for value in values:
                    found.setdefault(value, positions[call, event])
    transfers: dict[str, Transfer] = {}
    for value in step.values:
        owner = joined.values[value.name][0]
        tier = schedule.calls[owner[0]].destinations.get(owner[1], "keep")
        if tier == "keep":
            continue
        turn = next(phase.turn for phase in step.phases if value.last_use < phase.end)
        release = waited.get(owner)
        if release is not None and release >= turn:
            release = None  # Such an op only ensures that the write does not meet the reads.
        prefetch = started.get(owner, step.first_use(value))
        transfers[value.name] = Transfer(tier, release, prefetch)
    return transfers


def replay(
    step: Step,
    transfers: Mapping[str, Transfer],
    links: Mapping[str, Link],
    *,
    max_inflight_bytes: int = 2**62,
) -> Timeline:
    """As simulate; the times instead of the sums."""
    return _Replay(step, transfers, links, max_inflight_bytes).run()


class _Replay:
    """The state of a replay: clock, channels, and the writes in flight."""

    def __init__(
        self,
        step: Step,
        transfers: Mapping[str, Transfer],
        links: Mapping[str, Link],
        max_inflight_bytes: int,
    ) -> None:
        self._step, self._transfers, self._links = step, transfers, links
        self._max_inflight_bytes = max_inflight_bytes
        self._writes = {
            tier: _Channel(k.write_bytes_per_second, k.latency_seconds) for tier, k in links.items()
        }
        self._reads = {
            tier: _Channel(k.read_bytes_per_second, k.latency_seconds) for tier, k in links.items()
        }
        self._clock = 0.0
        self._written: dict[str, float] = {}
        self._read: dict[str, float] = {}
        self._inflight: list[tuple[float, int]] = []
        self._timeline = Timeline()

    def run(self) -> Timeline:
        """Position after position."""
        offloads, releases, prefetches, waits = _index_events(self._step, self._transfers)
        for position, seconds in enumerate(self._step.seconds):
            self._timeline.arrivals.append(self._clock)
            for value in releases.get(position, ()):
                self._wait(value, self._written[value.name])
            for value in prefetches.get(position, ()):
                self._start_read(value)
            for value in waits.get(position, ()):
                self._wait(value, self._read[value.name])
            self._clock += seconds
            for value in offloads.get(position, ()):
                self._start_write(value)
        self._timeline.arrivals.append(self._clock)
        return self._timeline

    def _note(self, kind: Kind, value: SavedValue, start: float, end: float) -> None:
        tier = self._transfers[value.name].tier
        noted = TimedTransfer(kind, value.name, tier, value.nbytes, start, end)
        self._timeline.transfers.append(noted)

    def _wait(self, value: SavedValue, end: float) -> None:
        if end > self._clock:
            self._note("wait", value, self._clock, end)
            self._clock = end

    def _start_read(self, value: SavedValue) -> None:
        if self._written[value.name] > self._clock:
            self._read[value.name] = self._clock  # Still in memory: nothing is read.
            return
        tier = self._transfers[value.name].tier
        self._clock += self._links[tier].compute_seconds_per_byte * value.nbytes
        start = self._reads[tier].find_start(self._clock)
        self._read[value.name] = self._reads[tier].add(self._clock, value.nbytes)
        self._note("read", value, start, self._read[value.name])

    def _start_write(self, value: SavedValue) -> None:
        while self._inflight and (
            self._inflight[0][0] <= self._clock
            or sum(nbytes for _, nbytes in self._inflight) + value.nbytes > self._max_inflight_bytes
        ):
            end, _ = heappop(self._inflight)
            self._wait(value, end)
        tier = self._transfers[value.name].tier
        self._clock += self._links[tier].compute_seconds_per_byte * value.nbytes
        start = self._writes[tier].find_start(self._clock)
        end = self._writes[tier].add(self._clock, value.nbytes)
        self._written[value.name] = end
        heappush(self._inflight, (end, value.nbytes))
        self._note("write", value, start, end)
