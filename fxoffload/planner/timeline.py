"""Timeline: the predicted start and end of compute, transfers and waits in a scheduled step.

`replay_schedule` finds the transfers that the ops of a schedule carry out, and `replay` notes when
they run in the event simulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fxoffload.planner.joining import JoinedStep
from fxoffload.planner.link import Link
from fxoffload.planner.plan import SavedValue
from fxoffload.planner.simulation import EventKind, EventLoop, Simulation
from fxoffload.planner.step import Step, Transfer
from fxoffload.schedule import CallValue, Schedule
from fxoffload.sizes import UNLIMITED_BYTES


@dataclass(frozen=True, slots=True)
class TimedTransfer:
    """A transfer of a value, or the compute waiting for it, from `start` to `end` in seconds.

    queued_seconds: for which the transfer waited for those before it, until `start`.
    """

    kind: EventKind
    value: str
    tier: str
    nbytes: int
    start: float
    end: float
    queued_seconds: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """The times of a step. arrivals: when each position is reached, before its waits; the end."""

    arrivals: tuple[float, ...]
    transfers: tuple[TimedTransfer, ...]
    simulation: Simulation


def replay_schedule(
    joined: JoinedStep,
    schedule: Schedule,
    links: Mapping[str, Link],
    *,
    max_inflight_bytes: int = UNLIMITED_BYTES,
) -> tuple[dict[str, Transfer], Timeline]:
    """The transfers, by name of value in `joined`, that the ops of `schedule` bring about, timed.

    links: those that the schedule was made for. An op of the backwards that waits for a write is a
    release where the write is predicted to end later. Elsewhere it only ensures that the write does
    not meet the reads.
    """
    transfers, guards = _read_ops(joined, schedule)
    while True:
        found = replay(joined.step, transfers, links, max_inflight_bytes=max_inflight_bytes)
        ends = found.simulation.written_positions
        late = {name: position for name, position in guards.items() if position < ends.get(name, 0)}
        # What waits there makes everything behind it later.
        first = min(late.values(), default=None)
        if first is None:
            return transfers, found
        for name, position in late.items():
            if position == first:
                transfers[name] = replace(transfers[name], release=position)


def _read_ops(joined: JoinedStep, schedule: Schedule) -> tuple[dict[str, Transfer], dict[str, int]]:
    """Transfers by name, and where backwards wait for writes: these are no releases yet."""
    positions = {(op.call, op.event): op.position for op in joined.ops}
    step = joined.step
    waited: dict[CallValue, int] = {}
    started: dict[CallValue, int] = {}
    for call, each in enumerate(schedule.calls):
        for events, found in ((each.waits, waited), (each.reads, started)):
            for event, values in events.items():
                for value in values:
                    found.setdefault(value, positions[call, event])
    transfers: dict[str, Transfer] = {}
    guards: dict[str, int] = {}
    for value in step.values:
        owner = joined.values[value.name][0]
        tier = schedule.calls[owner[0]].destinations.get(owner[1], "keep")
        if tier == "keep":
            continue
        release = waited.get(owner)
        if release is not None:
            release = max(release, value.last_use + 1)
            if release >= step.find_turn(value):
                guards[value.name], release = release, None
        prefetch = started.get(owner, step.first_use(value))
        transfers[value.name] = Transfer(tier, release, prefetch)
    return transfers, guards


def replay(
    step: Step,
    transfers: Mapping[str, Transfer],
    links: Mapping[str, Link],
    *,
    max_inflight_bytes: int = UNLIMITED_BYTES,
) -> Timeline:
    """Simulate a step as `simulate` does, and note the times of its events."""
    noted: list[TimedTransfer] = []

    def note(kind: EventKind, value: SavedValue, start: float, end: float) -> None:
        tier, queued = transfers[value.name].tier, start - loop.clock
        noted.append(TimedTransfer(kind, value.name, tier, value.nbytes, start, end, queued))

    loop = EventLoop(step, transfers, links, max_inflight_bytes, note)
    simulation = loop.run()
    return Timeline((*loop.arrivals, loop.clock), tuple(noted), simulation)
