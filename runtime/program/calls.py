"""One step as it runs: its calls, when their ops ran, and the schedule that each call follows.

A forward begins with the first offload of its graph; another call of the graph begins when a value
is offloaded a second time. A backward begins with the first op on one of the call's tickets. The
step ends when all of its tickets have died.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch

from fxoffload.ops import OpEvent
from fxoffload.runtime.measurement.clocks import Mark
from fxoffload.runtime.program.entry import (
    Entry,
    find_owners,
    list_resident_bytes,
    sum_resident_bytes,
)
from fxoffload.runtime.program.half_run import HalfRun, find_step_seconds, measure_halves
from fxoffload.runtime.program.live_bytes import count_foreign_bytes, count_live_bytes
from fxoffload.runtime.program.live_watch import Held, LiveWatch
from fxoffload.runtime.program.sampler import Rate
from fxoffload.runtime.program.store_watch import StoreWatch
from fxoffload.runtime.program.value_sizes import merge_sizes
from fxoffload.schedule import (
    CallSchedule,
    CallValue,
    Half,
    Program,
    Schedule,
    Sizes,
    StepMeasurement,
)

NO_SIZES: Mapping[str, int] = {}

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Call:
    """One run of a graph's forward, with its backward.

    schedule: None is the safe rule: everything moves. is_limited: whether there is a budget; then
    the safe rule has the lowest peak, as each release waits for its write. limits: under a budget,
    the bytes up to which `schedule` holds, of values whose size may change; else empty. seen: their
    bytes in this call.
    """

    step: StepRun
    graph: str
    number: int
    schedule: CallSchedule | None
    forward: HalfRun
    is_limited: bool
    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    seen: dict[str, int] = field(default_factory=dict[str, int])
    backward: HalfRun | None = None
    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])

    def find_run(self, kind: str, device: torch.device) -> HalfRun | None:
        """The half that an op of this kind belongs to; None if the step is not measured.

        The first op of a backward begins its half.
        """
        run = self.forward
        if kind in ("prefetch", "wait"):
            if self.backward is None:
                half = Half(self.graph, self.number, False)
                self.backward = self.step.add_half(half, device)
            run = self.backward
        return run if self.step.measures else None

    def find_destination(self, name: str, tier: str, nbytes: int) -> str:
        """The destination of the value by the schedule; without one `tier`, by the safe rule.

        If the value is larger than the schedule allows for, the step leaves the schedule.
        """
        if self.limits:
            self.seen[name] = nbytes
            if self.schedule is not None and nbytes > self.limits.get(name, 0):
                self.step.leave_schedule()
                self.schedule = None
        if self.schedule is None:
            return tier
        return self.schedule.destinations.get(name, tier)

    @property
    def blocks(self) -> bool:
        """Whether releases wait for their writes."""
        return self.schedule is None and self.is_limited

    @property
    def reads_early(self) -> bool:
        """Whether prefetches start reads that no schedule asks for."""
        return self.schedule is None and not self.is_limited

    def add(self, name: str, entry: Entry) -> None:
        """Add the entry of a value that was offloaded or kept."""
        self.entries[name] = entry
        self.step.stores.add(entry.store)
        self.step.note_birth()

    def note_death(self) -> None:
        """Count a ticket of the call that has died; safe in a finalizer, in any thread."""
        self.forward.last_half = len(self.step.runs) - 1
        self.step.note_death()

    def act(self, kind: str, name: str) -> None:
        """Do what the schedule says for this op: wait for writes, start reads."""
        if self.schedule is None:
            return
        event = kind, name
        for number, waited in self.schedule.waits.get(event, ()):
            entry = self.step.find_entry(number, waited)
            if entry is not None:
                entry.store.settle(entry.ticket)
        for number, read in self.schedule.reads.get(event, ()):
            entry = self.step.find_entry(number, read)
            if entry is not None:
                entry.start_reading()

    def pass_on(self, name: str, y: torch.Tensor) -> None:
        """Keep `y`, which the wait of the value `name` returns, for the call that reads it next."""
        if self.schedule is None or name not in self.schedule.passes:
            return
        entry = self.step.find_entry(*self.schedule.passes[name])
        if entry is not None and entry.ticket is self.entries[name].ticket:
            entry.passed = y


class StepRun:
    """The calls of one step in one thread.

    schedules: those that the step may turn out to follow, the likeliest first. measures: whether
    ops are timed. rate: how often a measured step samples live bytes; None: never. begun_bytes:
    live bytes of the device when the step began; None: it begins with its first op. base_bytes:
    what the device held then, others' memory included.
    """

    def __init__(
        self,
        schedules: list[Schedule],
        *,
        measures: bool,
        rate: Rate | None = None,
        begun_bytes: int | None = None,
    ) -> None:
        self.calls: list[Call] = []
        self.runs: list[HalfRun] = []
        self.measures = measures
        self.base_bytes: int | None = None
        self.followed: Schedule | None = None
        self.stores = StoreWatch(measures=measures)
        self._schedules = schedules
        self._alive = 0
        self._dead: deque[None] = deque()  # Grows in any thread, in single steps.
        self._watch: LiveWatch | None = None
        self._rate = rate
        self._begun_bytes = begun_bytes

    @property
    def ended(self) -> bool:
        """Whether every ticket of the step has died."""
        return self._alive == len(self._dead)

    @property
    def program(self) -> Program:
        """The halves that have run so far."""
        return tuple(run.half for run in self.runs)

    def add_call(
        self,
        graph: str,
        device: torch.device,
        *,
        is_limited: bool,
        sizes: Mapping[str, int] = NO_SIZES,
    ) -> Call:
        """Begin a forward of `graph`; is_limited: see Call. sizes: limits without a schedule."""
        number = len(self.calls)
        before = self.followed
        run = self.add_half(Half(graph, number, True), device)
        followed = self.followed
        if before is not None and followed is None and is_limited:
            self.leave_schedule()
        schedule = None if followed is None else followed.calls[number]
        limits = sizes if followed is None else followed.sizes.get(graph, sizes)
        call = Call(self, graph, number, schedule, run, is_limited, limits)
        self.calls.append(call)
        return call

    def add_half(self, half: Half, device: torch.device) -> HalfRun:
        """Begin a half; the step follows the first schedule whose program has begun like this."""
        run = HalfRun(half, thread=threading.get_native_id())
        if self.measures or not self.runs:
            found = self._count_held(device, half)
            run.held_bytes = None if found is None else found.held_bytes
            if not self.runs and run.held_bytes is not None:
                begun_bytes = run.held_bytes if self._begun_bytes is None else self._begun_bytes
                # Memory that was freed since, such as the last batch's, is not part of this step.
                self._begun_bytes = min(begun_bytes, run.held_bytes)
                self.base_bytes = self._begun_bytes + count_foreign_bytes(device)
            if self._watch is not None:
                self._watch.note_half(run, found)
            elif self.measures and self._rate is not None:
                self._watch = LiveWatch(partial(self._count_held, device), device, self._rate)
        position = len(self.runs)
        self.runs.append(run)
        self._schedules = [
            each
            for each in self._schedules
            if position < len(each.program) and each.program[position] == half
        ]
        self.followed = self._schedules[0] if self._schedules else None
        return run

    def leave_schedule(self) -> None:
        """Move what was kept, and follow the safe rule: more may come than the schedule allows."""
        log.info("the step goes on otherwise than foreseen: what was kept moves")
        self._schedules, self.followed = [], None
        for entry in self._list_entries().values():
            entry.move_kept()

    def find_sizes(self) -> tuple[Sizes, Sizes]:
        """The largest sizes of values whose size may change: those that are scheduled, and seen."""
        calls = [call for call in self.calls if call.limits]
        foreseen = merge_sizes(*({call.graph: call.limits} for call in calls))
        return foreseen, merge_sizes(*({call.graph: call.seen} for call in calls))

    def find_entry(self, number: int, name: str) -> Entry | None:
        """The entry of the value `name` of the call `number`; None if there is none."""
        if number >= len(self.calls):
            return None
        return self.calls[number].entries.get(name)

    def note_birth(self) -> None:
        """Count a new ticket of the step."""
        self._alive += 1

    def note_death(self) -> None:
        """Count a ticket of the step that has died; safe in a finalizer, in any thread."""
        self._dead.append(None)

    def note_op(self, run: HalfRun, event: OpEvent, enter: Mark, leave: Mark) -> None:
        """Note that an op of a measured step ran from `enter` to `leave`."""
        run.marks[event] = enter, leave
        if self._watch is not None:
            self._watch.note_op(run, event)

    def stop(self) -> None:
        """Stop sampling what the device holds."""
        if self._watch is not None:
            self._watch.stop()

    def measure(self) -> StepMeasurement:
        """The measurement of the step; called once, when it has ended."""
        self.stop()
        return StepMeasurement(
            measure_halves(self.runs, self._begun_bytes or 0),
            self.stores.close(),
            self.base_bytes,
            find_owners(self._list_entries()),
            self.stores.exposed_seconds,
            find_step_seconds(self.runs),
            sampled=self._watch is not None,
            unseen_seconds=max((run.unseen_seconds for run in self.runs), default=0.0),
        )

    def list_held(self) -> dict[CallValue, int]:
        """See list_resident_bytes."""
        half = self.runs[-1].half if self.runs else None
        return list_resident_bytes(self._list_entries(), half)

    def _list_entries(self) -> dict[CallValue, Entry]:
        # Copies, as a sampler asks this while the step goes on.
        pairs = ((call.number, list(call.entries.items())) for call in list(self.calls))
        return {(number, name): entry for number, items in pairs for name, entry in items}

    def _count_held(self, device: torch.device, half: Half | None = None) -> Held | None:
        """What the device holds in `half`; by default, in the half in progress.

        None if the device does not count it, and by default also once the step has ended.
        """
        if half is None and self._alive and self.ended:
            return None
        half = self.runs[-1].half if half is None and self.runs else half
        # In this order, a value that dies in between is not taken for memory of others.
        resident_bytes = sum_resident_bytes(self._list_entries().values(), half)
        live_bytes = count_live_bytes(device)
        return None if live_bytes is None else Held(live_bytes, live_bytes - resident_bytes)
