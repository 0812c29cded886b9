"""Timeline: the predicted start and end of compute, transfers and waits in a scheduled step.

`read_transfers` finds the transfers that the ops of a schedule carry out, and `replay` notes when
they run in the event simulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fxoffload.planner.joining import JoinedStep
from fxoffload.planner.link import Link
from fxoffload.planner.plan import SavedValue
from fxoffload.planner.simulation import EventKind, EventLoop
from fxoffload.planner.step import Step, Transfer
from fxoffload.schedule import Schedule
from fxoffload.sizes import UNLIMITED_BYTES


@dataclass(frozen=True, slots=True)
class TimedTransfer:
    """A transfer of a value, or the compute waiting for it, from `start` to `end` in seconds."""

    kind: EventKind
    value: str
    tier: str
    nbytes: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """The times of a step. arrivals: when each position is reached, before its waits; the end."""

    arrivals: tuple[float, ...]
    transfers: tuple[TimedTransfer, ...]

    @property
    def step_seconds(self) -> float:
        """Of the whole step."""
        return self.arrivals[-1]

    @property
    def exposed_seconds(self) -> float:
        """Of all waits."""
        return sum(each.end - each.start for each in self.transfers if each.kind == "wait")


def read_transfers(joined: JoinedStep, schedule: Schedule) -> dict[str, Transfer]:
    """The transfers that the ops of `schedule` carry out, by the names of values in `joined`."""
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
        turn = step.find_turn(value)
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
    max_inflight_bytes: int = UNLIMITED_BYTES,
) -> Timeline:
    """Simulate a step as `simulate` does, and return the times of its events."""
    noted: list[TimedTransfer] = []

    def note(kind: EventKind, value: SavedValue, start: float, end: float) -> None:
        tier = transfers[value.name].tier
        noted.append(TimedTransfer(kind, value.name, tier, value.nbytes, start, end))

    loop = EventLoop(step, transfers, links, max_inflight_bytes, note)
    loop.run()
    return Timeline((*loop.arrivals, loop.clock), tuple(noted))
