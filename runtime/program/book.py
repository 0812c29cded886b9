"""The programs that this process has run: what was measured of each, and its schedule."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from fxoffload.errors import BudgetError
from fxoffload.runtime.program.advice import JUDGED_STEPS, Adviser
from fxoffload.runtime.program.calls import StepRun
from fxoffload.runtime.program.comparison import (
    differ,
    differ_in_base,
    differ_in_flows,
    find_medians,
    find_typical_flows,
    keep_seen,
)
from fxoffload.runtime.program.live_bytes import count_live_bytes
from fxoffload.runtime.program.price import Sample, Samples
from fxoffload.runtime.program.value_sizes import is_smaller, merge_sizes, scale_measurement
from fxoffload.schedule import (
    UNKNOWN_OWNERS,
    HalfMeasurement,
    Owners,
    Program,
    ProgramRecord,
    Schedule,
    Sizes,
    StepMeasurement,
    TierFlow,
)

log = logging.getLogger(__name__)

# Steps of one program from which medians are taken.
KEPT_STEPS = 5
# A step is measured when its program has run no more often than this, and then each so many steps.
FIRST_STEPS = 5
MEASURED_EACH = 16
# Steps of a program that move everything beside steps that follow a schedule, so that the price of
# a byte shows: these, and then each so many steps.
TRIED_STEPS = (1, 3)
TRIED_EACH = 256
# Where not everything moves, which shows the price: less than this part of what may move.
ALL_MOVED = 0.8
# Measured steps whose transfers tell the speed of a tier: the one in the middle counts.
KEPT_FLOWS = 3
# Exposed seconds beyond the scheduled ones, as a share of the step: more of them is measured.
UNFORESEEN_WAIT = 0.1
# Programs that are remembered.
MAX_PROGRAMS = 16
# Forwards and backwards of a step. More come only where some ticket lives for ever.
MAX_HALVES = 4096

MakeSchedule = Callable[[Program, StepMeasurement], Schedule]
ExplainFailure = Callable[[BudgetError], BudgetError]


@dataclass(slots=True, eq=False)
class Learned:
    """One program. assumed: the measurement that the schedule was made by.

    latest: the last measured step, and the schedule that it followed to its end.
    samples: what its steps took, by what they moved. limited: whether there is a budget.
    excess_bytes: the most by which a step exceeded the peak that its schedule predicted.
    judged: measured steps that followed schedules, behind the first ones.
    doubts: whether the latest step waited for transfers that should have been hidden, saw other
    speeds, or had larger values than any before: then the next one is measured.
    sizes: the largest that values of symbolic size had; schedules are made for them. guessed:
    whether `assumed` is scaled from a step of smaller values.
    """

    steps: int = 0
    records: deque[Sequence[HalfMeasurement]] = field(
        default_factory=lambda: deque[Sequence[HalfMeasurement]](maxlen=KEPT_STEPS)
    )
    flows: deque[Mapping[str, TierFlow]] = field(
        default_factory=lambda: deque[Mapping[str, TierFlow]](maxlen=KEPT_FLOWS)
    )
    owners: Owners = UNKNOWN_OWNERS
    samples: Samples = field(default_factory=Samples)
    assumed: StepMeasurement | None = None
    schedule: Schedule | None = None
    latest: tuple[StepMeasurement, Schedule | None] | None = None
    judged: deque[StepMeasurement] = field(
        default_factory=lambda: deque[StepMeasurement](maxlen=JUDGED_STEPS)
    )
    doubts: bool = False
    limited: bool = False
    excess_bytes: int = 0
    sizes: Sizes = field(default_factory=dict[str, Mapping[str, int]])
    guessed: bool = False

    def grow(self, sizes: Sizes) -> bool:
        """Whether `sizes` are larger than any before, so that another schedule is needed."""
        sizes = merge_sizes(self.sizes, sizes)
        before, self.sizes = self.sizes, sizes
        if self.assumed is None or sizes == before:
            return False
        self.assumed, self.guessed = scale_measurement(self.assumed, sizes), True
        return True

    def forget_guess(self) -> None:
        """A step of the sizes that were guessed has been measured."""
        if self.guessed:
            self.assumed, self.guessed, self.excess_bytes = None, False, 0
            self.records.clear()

    @property
    def tries(self) -> bool:
        """Whether the next step moves everything to show what that takes from compute.

        Under a budget no step does: what it moves is settled by the budget. Nor where transfers
        take nothing, as on a GPU.
        """
        schedule = self.schedule
        if schedule is None or self.limited or not schedule.price:
            return False
        due = self.steps in TRIED_STEPS or self.steps % TRIED_EACH == 0
        return due and schedule.moved_bytes < ALL_MOVED * schedule.saved_bytes

    @property
    def measures(self) -> bool:
        """Whether the next step is measured."""
        return self.steps < FIRST_STEPS or self.steps % MEASURED_EACH == 0 or self.doubts

    def note(self, step: StepRun, latest: StepMeasurement) -> None:
        """One more measured step."""
        self.latest = latest, step.followed
        self.limited = any(call.is_limited for call in step.calls)
        if step.followed is not None or len(self.records) == 0 or self.schedule is None:
            self.records.append(latest.halves)
        self.flows.append(latest.flows)
        self.owners = self.owners.update(latest.owners)
        if step.followed is not None and latest.live_bytes is not None:
            peak_bytes = latest.live_bytes - step.followed.base_bytes
            excess_bytes = peak_bytes - step.followed.peak_bytes
            self.excess_bytes = max(self.excess_bytes, excess_bytes)
        if self.steps > 2 and step.followed is not None:
            self.judged.append(latest)
        if self.steps > 1 and latest.step_seconds > 0.0:
            samples = self.samples.much if step.followed is None else self.samples.little
            seconds = latest.step_seconds - latest.exposed_seconds
            samples.append(Sample(latest.moved_bytes, seconds))

    def record(self) -> ProgramRecord | None:
        """What is known, for a report; None without a schedule."""
        if self.schedule is None or self.assumed is None:
            return None
        latest, followed = self.latest or (None, None)
        # Another schedule may do the same with other predictions.
        same = followed is not None and followed.calls == self.schedule.calls
        return ProgramRecord(self.schedule, self.steps, self.assumed, latest if same else None)


class ProgramBook:
    """The programs of one thread. make_schedule: raises BudgetError where no schedule fits.

    The error ends a job only in its first steps. Later, such steps follow the safe rule, with a
    warning. explain: what is raised or said in place of the error.
    """

    def __init__(self, make_schedule: MakeSchedule, explain: ExplainFailure) -> None:
        self._make_schedule = make_schedule
        self._explain = explain
        self._adviser = Adviser()
        self._learned: dict[Program, Learned] = {}  # The latest last.
        self._device: torch.device | None = None  # Of the latest step.
        self._begun_bytes: int | None = None
        self.step: StepRun | None = None

    @property
    def records(self) -> list[ProgramRecord]:
        """Of all programs that have a schedule, the latest first."""
        found = (each.record() for each in reversed(self._learned.values()))
        return [record for record in found if record is not None]

    @property
    def schedules(self) -> list[Schedule]:
        """Of all programs that have one, the latest first."""
        found = (each.schedule for each in reversed(self._learned.values()))
        return [schedule for schedule in found if schedule is not None]

    @property
    def next_schedule(self) -> Schedule | None:
        """What the next step is expected to follow.

        None while a step runs, and until FIRST_STEPS of its program have been measured.
        """
        latest = next(reversed(self._learned.values()), None)
        runs = self.step is not None and not self.step.ended
        return None if latest is None or latest.steps < FIRST_STEPS or runs else latest.schedule

    def forget(self, graph: str) -> None:
        """Forget the programs that `graph` belongs to."""
        for program in list(self._learned):
            if any(half.graph == graph for half in program):
                del self._learned[program]

    def note_begin(self) -> None:
        """The next step begins here: from now on, what is held is the step's.

        Nothing is noted while a step runs, nor before the first one, whose device is not known.
        """
        if self._device is not None and (self.step is None or self.step.ended):
            self._begun_bytes = count_live_bytes(self._device)

    def begin_step(self, device: torch.device) -> StepRun:
        """The step that runs, or the next one where that has ended, which runs on `device`.

        Raises BudgetError where the step that has ended cannot be brought within its budget.
        """
        step = self.step
        if step is not None and not step.ended and len(step.runs) < MAX_HALVES:
            return step
        if step is not None:
            self.step = None
            step.stop()
            if step.ended:
                self._learn(step)
        latest = next(reversed(self._learned.values()), Learned())
        self._adviser.judge(latest.schedule, latest.judged, is_limited=latest.limited)
        schedules = [] if latest.tries else self.schedules
        begun_bytes, self._begun_bytes = self._begun_bytes, None
        if device != self._device:
            self._device, begun_bytes = device, None
        measures = latest.measures or latest.tries
        self.step = StepRun(schedules, measures=measures, begun_bytes=begun_bytes)
        return self.step

    def _learn(self, step: StepRun) -> None:
        program = step.program
        if not program:
            return
        learned = self._learned.pop(program, None) or Learned()
        self._learned[program] = learned
        while len(self._learned) > MAX_PROGRAMS:
            del self._learned[next(iter(self._learned))]
        learned.steps += 1
        schedule = learned.schedule
        grows = learned.grow(merge_sizes(step.find_limits(), seen := step.find_sizes()))
        if is_smaller(seen, learned.sizes) or (grows and not step.measures):
            learned.doubts |= grows
            self._guess(program, learned, step, seen)
            return
        if schedule is not None:
            most = schedule.exposed_seconds + UNFORESEEN_WAIT * schedule.step_seconds
            learned.doubts = step.exposed_seconds > most
            learned.doubts |= differ_in_base(learned.assumed, step.base_bytes, schedule)
        if not step.measures:
            return
        if learned.steps == 2:
            # The first step of a process met compilers and cold memory.
            learned.records.clear()
        latest = step.measure()
        learned.forget_guess()
        learned.note(step, latest)
        halves = find_medians(program, learned.records)
        if learned.assumed is not None:
            halves = keep_seen(learned.assumed.halves, halves)
        measured = StepMeasurement(
            halves,
            find_typical_flows(learned.flows),
            latest.base_bytes,
            learned.owners,
            price=None if learned.limited else learned.samples.find_price(),
            excess_bytes=learned.excess_bytes,
            sizes=learned.sizes,
        )
        if learned.assumed is not None:
            learned.doubts |= differ_in_flows(learned.assumed.flows, latest.flows)
        if learned.assumed is not None and not differ(learned.assumed, measured, schedule):
            return
        learned.doubts = False
        self._schedule(program, learned, measured)

    def _guess(self, program: Program, learned: Learned, step: StepRun, seen: Sizes) -> None:
        """Make a schedule of larger values than those of a step that was measured."""
        if learned.assumed is None and step.measures:
            latest = step.measure()
            learned.note(step, latest)
            learned.guessed = True
            learned.assumed = scale_measurement(replace(latest, sizes=seen), learned.sizes)
        elif not learned.doubts:
            return
        if learned.assumed is not None:
            self._schedule(program, learned, learned.assumed)

    def _schedule(self, program: Program, learned: Learned, measured: StepMeasurement) -> None:
        """Make the schedule of the next steps by `measured`."""
        learned.assumed = measured
        try:
            schedule = self._make_schedule(program, measured)
            learned.schedule = replace(schedule, sizes=learned.sizes)
        except BudgetError as error:
            if 1 < learned.steps <= FIRST_STEPS and not learned.guessed:
                raise self._explain(error) from None
            learned.schedule = None
            if learned.guessed:
                log.info("no schedule is known to fit: everything moves: %s", error)
            elif learned.steps == 1:
                learned.assumed = None  # What compilers held is no reason to give up.
            else:
                log.warning(
                    "the step goes on at the lowest peak that there is: %s", self._explain(error)
                )
        else:
            log.info("%s", learned.schedule)
