"""One event simulation of a training step over a plan. Pure data, no torch.

    compute   node after node, forward then backward; waits where a release or a read is late
    links     for each tier a queue of writes and one of reads, each transfer behind the last
    memory    what the plan cannot move, kept values, and moved ones while they are on the device

Positions count the nodes of a step: the forward's, then the backward's. It is used to plan, to
explain, and to ask what other hardware would do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heappop, heappush
from itertools import accumulate
from operator import add
from typing import NamedTuple

from fxoffload.planner.link import Link
from fxoffload.planner.plan import SavedValue, Tier

# Of what is predicted: no smaller share of it is told apart.
RESOLUTION = 0.01


@dataclass(frozen=True, slots=True)
class Residence:
    """`nbytes` called `name` that live from position `first` to `last`, both included."""

    name: str
    nbytes: int
    first: int
    last: int


class Phase(NamedTuple):
    """Forwards behind one another, from `start` to `turn`, then backwards, from there to `end`."""

    start: int
    turn: int
    end: int


@dataclass(frozen=True)
class Step:
    """A training step as the planner sees it.

    names, seconds: of every node. forward_length: how many of them are the first forward's; the
    first `forward_inputs` of these and the first `backward_inputs` of those behind them are
    placeholders. fixed: what lives whatever the plan says. values: what may be moved, or is kept
    for a reason. stops: the positions in front of which a release or a prefetch may stand; None:
    all. phases: the whole step in order; by default one, which turns at `forward_length`.
    """

    names: tuple[str, ...]
    seconds: tuple[float, ...]
    forward_length: int
    forward_inputs: int
    backward_inputs: int
    fixed: tuple[Residence, ...]
    values: tuple[SavedValue, ...]
    stops: tuple[int, ...] | None = None
    phases: tuple[Phase, ...] = ()

    def __post_init__(self) -> None:
        if not self.phases:
            whole = Phase(0, self.forward_length, len(self.seconds))
            object.__setattr__(self, "phases", (whole,))

    @property
    def compute_seconds(self) -> float:
        """Seconds of all nodes."""
        return sum(self.seconds)

    @cached_property
    def fixed_bytes(self) -> tuple[int, ...]:
        """Bytes of what is fixed at every position."""
        return tuple(accumulate(_find_changes(self.fixed, len(self.seconds))))

    def first_use(self, value: SavedValue) -> int:
        """The position of the first backward reader."""
        return self.forward_length + value.first_use

    def freed(self, value: SavedValue) -> int:
        """The position of the last backward reader."""
        return self.forward_length + value.freed


@dataclass(frozen=True, slots=True)
class Transfer:
    """One value on its way: `release` stands in front of that position, `prefetch` too.

    release: None where nothing waits for the write: the store lets go when it is done.
    """

    tier: Tier
    release: int | None
    prefetch: int


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
        """The first position at which that is so."""
        return self.live_bytes.index(self.peak_bytes)


class _Channel:
    """Transfers of one direction of one tier, one after the other."""

    def __init__(self, bytes_per_second: float, latency_seconds: float) -> None:
        self._bytes_per_second = bytes_per_second
        self._latency_seconds = latency_seconds
        self._free = 0.0

    def find_start(self, now: float) -> float:
        """When a transfer that is asked for `now` begins."""
        return max(now, self._free)

    def add(self, now: float, nbytes: int) -> float:
        """When a transfer that is asked for `now` is done."""
        self._free = max(now, self._free) + nbytes / self._bytes_per_second
        return self._free + self._latency_seconds


def simulate(
    step: Step,
    transfers: Mapping[str, Transfer],
    links: Mapping[str, Link],
    *,
    max_inflight_bytes: int = 2**62,
) -> Simulation:
    """Run `step` with `transfers` (by name of value) over `links` (by tier)."""
    offloads, releases, prefetches, waits = _index_events(step, transfers)
    busy = offloads.keys() | releases.keys() | prefetches.keys() | waits.keys()
    writes = {
        tier: _Channel(k.write_bytes_per_second, k.latency_seconds) for tier, k in links.items()
    }
    reads = {
        tier: _Channel(k.read_bytes_per_second, k.latency_seconds) for tier, k in links.items()
    }
    clock = exposed = contended = 0.0
    arrivals: list[float] = []
    written: dict[str, float] = {}
    read: dict[str, float] = {}
    inflight: list[tuple[float, int]] = []
    inflight_bytes = forwarded_bytes = 0
    for position, seconds in enumerate(step.seconds):
        arrivals.append(clock)
        if position not in busy:
            clock += seconds
            continue
        before = clock
        for value in releases.get(position, ()):
            clock = max(clock, written[value.name])
        exposed += clock - before
        for value in prefetches.get(position, ()):
            if written[value.name] > clock:
                forwarded_bytes += value.nbytes
                read[value.name] = clock
            else:
                taken = links[transfers[value.name].tier].compute_seconds_per_byte * value.nbytes
                contended += taken
                clock += taken
                read[value.name] = reads[transfers[value.name].tier].add(clock, value.nbytes)
        before = clock
        for value in waits.get(position, ()):
            clock = max(clock, read[value.name])
        exposed += clock - before
        clock += seconds
        for value in offloads.get(position, ()):
            while inflight and (
                inflight[0][0] <= clock or inflight_bytes + value.nbytes > max_inflight_bytes
            ):
                end, nbytes = heappop(inflight)
                inflight_bytes -= nbytes
                exposed += max(0.0, end - clock)
                clock = max(clock, end)
            tier = transfers[value.name].tier
            taken = links[tier].compute_seconds_per_byte * value.nbytes
            contended += taken
            clock += taken
            end = writes[tier].add(clock, value.nbytes)
            written[value.name] = end
            heappush(inflight, (end, value.nbytes))
            inflight_bytes += value.nbytes
    moved_bytes = sum(value.nbytes for value in step.values if value.name in transfers)
    return Simulation(
        step_seconds=clock,
        exposed_seconds=exposed,
        contended_seconds=contended,
        live_bytes=_sum_residences(step, _find_residences(step, transfers, arrivals, written)),
        written_bytes=moved_bytes,
        read_bytes=moved_bytes - forwarded_bytes,
        forwarded_bytes=forwarded_bytes,
        written_positions={
            name: bisect_left(arrivals, written[name])
            for name, transfer in transfers.items()
            if transfer.release is None
        },
    )


def find_lower_bound(step: Step) -> int:
    """The largest working set of any single moment: no plan that only moves gets below it."""
    movable = {value.name for value in step.values if value.refusal is None}
    return max(find_working_sets(step, movable), default=0)


def find_working_sets(step: Step, moved: Set[str]) -> tuple[int, ...]:
    """Bytes on the device at every position if `moved` values came and went in no time."""
    residences: list[Residence] = []
    for value in step.values:
        if value.name in moved:
            residences.append(Residence(value.name, value.nbytes, value.born, value.last_use))
            first, last = step.first_use(value), step.freed(value)
            residences.append(Residence(value.name, value.nbytes, first, last))
        elif value.counts:
            residences.append(_keep(step, value))
    return _sum_residences(step, residences)


def find_holders(
    step: Step, simulation: Simulation, transfers: Mapping[str, Transfer]
) -> list[Residence]:
    """What lives at the peak, largest first."""
    arrivals = [0.0] * len(step.seconds)
    written = dict.fromkeys(transfers, 0.0)
    position = simulation.peak_position
    live = [
        residence
        for residence in (*step.fixed, *_find_residences(step, transfers, arrivals, written))
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
        if transfer is not None:
            prefetches.setdefault(transfer.prefetch, []).append(value)
            waits.setdefault(step.first_use(value), []).append(value)
    return offloads, releases, prefetches, waits


def _find_residences(
    step: Step,
    transfers: Mapping[str, Transfer],
    arrivals: Sequence[float],
    written: Mapping[str, float],
) -> list[Residence]:
    residences: list[Residence] = []
    for value in step.values:
        transfer = transfers.get(value.name)
        if transfer is None:
            if value.counts:
                residences.append(_keep(step, value))
            continue
        if transfer.release is None:
            # The store holds it until it is written. What a node waits for has its memory by then,
            # so that what counts is when the waiting begins.
            last = bisect_left(arrivals, written[value.name]) - 1
        else:
            last = transfer.release - 1
        last = min(max(last, value.last_use), step.freed(value))
        first = max(min(transfer.prefetch, step.first_use(value)), last + 1)
        residences.append(Residence(value.name, value.nbytes, value.born, last))
        residences.append(Residence(value.name, value.nbytes, first, step.freed(value)))
    return residences


def _keep(step: Step, value: SavedValue) -> Residence:
    return Residence(value.name, value.kept_bytes, value.born, step.freed(value))


def _sum_residences(step: Step, residences: Sequence[Residence]) -> tuple[int, ...]:
    """Bytes of `residences` and of what is fixed, at every position."""
    moving = accumulate(_find_changes(residences, len(step.seconds)))
    return tuple(map(add, step.fixed_bytes, moving))


def _find_changes(residences: Sequence[Residence], length: int) -> list[int]:
    changes = [0] * (length + 1)
    for residence in residences:
        if residence.first <= residence.last:
            changes[residence.first] += residence.nbytes
            changes[min(residence.last + 1, length)] -= residence.nbytes
    return changes[:-1]
