"""The book of a thread: the programs that it has run, their measurements and their schedules."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch

from fxoffload.errors import BudgetError
from fxoffload.runtime.program.advice import Adviser
from fxoffload.runtime.program.calls import StepRun
from fxoffload.runtime.program.comparison import (
    differ,
    differ_in_base,
    differ_in_flows,
    find_medians,
    find_typical_flows,
)
from fxoffload.runtime.program.learned import FIRST_STEPS, Learned
from fxoffload.runtime.program.live_bytes import count_foreign_bytes, count_live_bytes
from fxoffload.runtime.program.value_sizes import is_smaller, merge_sizes, scale_measurement
from fxoffload.schedule import Program, ProgramRecord, Schedule, StepMeasurement

log = logging.getLogger(__name__)

# If a step waits for transfers longer than predicted, by more than this share of the step, the next
# one is measured.
UNFORESEEN_WAIT = 0.1
# The number of programs that are remembered.
MAX_PROGRAMS = 16
# The number of forwards and backwards after which a step ends, as one with a ticket that is never
# freed would not end by itself.
MAX_HALVES = 4096

MakeSchedule = Callable[[Program, StepMeasurement], Schedule]
ExplainFailure = Callable[[BudgetError], BudgetError]


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
        """The records of all programs that have a schedule, the latest first."""
        found = (each.record() for each in reversed(self._learned.values()))
        return [record for record in found if record is not None]

    @property
    def schedules(self) -> list[Schedule]:
        """The schedules of all programs that have one, the latest first."""
        found = (each.schedule for each in reversed(self._learned.values()))
        return [schedule for schedule in found if schedule is not None]

    @property
    def next_schedule(self) -> Schedule | None:
        """The schedule that the next step is expected to follow.

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

    def note_begin(self, *, declared: bool) -> None:
        """Begin the next step here: memory that is allocated from here on belongs to it.

        declared: whether the program says so, which replaces an earlier beginning. If not, a
        compiled graph is called; of all such calls since the last step, the one at which the least
        memory was live is the beginning. Does nothing while a step runs, and before the first step,
        whose device is not known.
        """
        if self._device is None or (self.step is not None and not self.step.ended):
            return
        found, before = count_live_bytes(self._device), self._begun_bytes
        if not declared and found is not None and before is not None:
            found = min(found, before)
        self._begun_bytes = found

    def begin_step(self, device: torch.device, graph: str) -> StepRun:
        """The step in progress; if it has ended, the next one, which begins with `graph`.

        Raises BudgetError if no schedule brings the ended step within its budget.
        """
        step = self.step
        if step is not None and not step.ended and len(step.runs) < MAX_HALVES:
            return step
        if step is not None:
            self.step = None
            step.stop()
            if step.ended:
                self._learn(step)
        begun_bytes, self._begun_bytes = self._begun_bytes, None
        if device != self._device:
            self._device, begun_bytes = device, None
        if begun_bytes is not None and any(each.limited for each in self._learned.values()):
            self._follow_base(begun_bytes + count_foreign_bytes(device))
        latest = next(reversed(self._learned.values()), Learned())
        self._adviser.judge(latest.schedule, latest.judged, is_limited=latest.limited)
        schedules = [] if latest.tries else self.schedules
        # Which program comes next is not known: it may be one that has not been measured yet.
        unknown = any(
            each.assumed is None and program[0].graph == graph
            for program, each in self._learned.items()
        )
        self.step = StepRun(
            schedules,
            measures=latest.measures or unknown,
            rate=latest.rate,
            begun_bytes=begun_bytes,
        )
        return self.step

    def _follow_base(self, base_bytes: int) -> None:
        """Make another schedule of each program that began with less than `base_bytes` before.

        So the step that begins now keeps a limit of the device, too: it may be the first one behind
        an optimizer that has made its states.
        """
        for program, learned in self._learned.items():
            assumed = learned.assumed
            if assumed is None or not learned.limited or base_bytes <= (assumed.base_bytes or 0):
                continue
            if differ_in_base(assumed, base_bytes, learned.schedule):
                self._schedule(program, learned, replace(assumed, base_bytes=base_bytes))

    def _learn(self, step: StepRun) -> None:
        """Note the ended `step`; make another schedule for its program if its numbers differ."""
        program = step.program
        if not program:
            return
        learned = self._learned.pop(program, None) or Learned()
        self._learned[program] = learned
        while len(self._learned) > MAX_PROGRAMS:
            del self._learned[next(iter(self._learned))]
        learned.steps += 1
        schedule = learned.schedule
        foreseen, seen = step.find_sizes()
        grows = learned.grow(merge_sizes(foreseen, seen))
        if is_smaller(seen, learned.sizes) or (grows and not step.measures):
            guess = learned.assumed if grows else None
            if learned.assumed is None and step.measures:
                latest = step.measure()
                learned.note(step, latest)
                guess = scale_measurement(replace(latest, sizes=seen), learned.sizes)
            if guess is not None:
                learned.guessed, learned.doubts = True, grows
                self._schedule(program, learned, guess)
            return
        if schedule is not None:
            most = schedule.exposed_seconds + UNFORESEEN_WAIT * schedule.step_seconds
            learned.doubts = step.stores.exposed_seconds > most
            learned.doubts |= differ_in_base(learned.assumed, step.base_bytes, schedule)
        if not step.measures:
            return
        if learned.steps == 2:
            # The first step of a process had compilers and cold memory beside it.
            learned.forget_steps()
        latest = step.measure()
        learned.forget_guess()
        learned.note(step, latest)
        measured = StepMeasurement(
            find_medians(program, learned.records, learned.sampled, learned.price),
            find_typical_flows(learned.flows),
            latest.base_bytes,
            learned.owners,
            price=learned.measured_price,
            excess_bytes=learned.excess_bytes,
            sizes=learned.sizes,
            sampled=all(record.sampled for record in learned.records),
        )
        if learned.assumed is not None:
            learned.doubts |= differ_in_flows(learned.assumed.flows, latest.flows)
        if learned.assumed is not None and not differ(
            learned.assumed, measured, schedule, learned.changed_seconds
        ):
            return
        learned.doubts = False
        self._schedule(program, learned, measured)

    def _schedule(self, program: Program, learned: Learned, measured: StepMeasurement) -> None:
        """Make the schedule of the next steps by `measured`."""
        learned.assumed = measured
        try:
            schedule = self._make_schedule(program, measured)
            learned.schedule = replace(schedule, sizes=learned.sizes)
            if measured.price is None:
                learned.probed_price = schedule.price
        except BudgetError as error:
            if 1 < learned.steps <= FIRST_STEPS and not learned.guessed:
                raise self._explain(error) from None
            learned.schedule = None
            if learned.guessed:
                log.warning(
                    "everything moves until a step of the largest sizes has been measured: %s",
                    error,
                )
            elif learned.steps == 1:
                learned.assumed = None  # The memory of compilers counts in the first step only.
            else:
                log.warning(
                    "the step goes on at the lowest peak that there is: %s", self._explain(error)
                )
        else:
            log.info("%s", learned.schedule)
