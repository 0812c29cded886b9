"""What a thread has learned of one program: its measured steps, and the schedule made by them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from fxoffload.runtime.program.advice import JUDGED_STEPS
from fxoffload.runtime.program.calls import StepRun
from fxoffload.runtime.program.comparison import (
    CHANGED_SECONDS,
    SETTLED_SECONDS,
    keep_sampled,
)
from fxoffload.runtime.program.price import Sample, Samples
from fxoffload.runtime.program.sampler import CLOSE_RATE, RATE, Rate
from fxoffload.runtime.program.value_sizes import merge_sizes, scale_measurement
from fxoffload.schedule import (
    UNKNOWN_OWNERS,
    Owners,
    ProgramRecord,
    Schedule,
    Sizes,
    StepMeasurement,
    TierFlow,
)

# Steps of one program from which medians are taken.
KEPT_STEPS = 5
# Sampled steps of one program of which the most bytes count: a sample may miss a short peak.
KEPT_SAMPLED_STEPS = 16
# The first steps of a program are measured, and then one in so many. After FIRST_STEPS there is a
# schedule; the steps up to SETTLED_STEPS correct its seconds, as the first ones are slower.
FIRST_STEPS = 5
SETTLED_STEPS = 10
MEASURED_EACH = 16
# One in so many measured steps samples live bytes. A step is slower for it (closely, by half and
# more on two cores): the seconds are those of the other steps, and only the first ones are sampled
# closely.
SAMPLED_EACH = 2
# A longer time without a sample may hide a peak between two graphs: under a budget, the first steps
# are sampled until one of them had none.
UNSEEN_SECONDS = 0.001
# These steps of a program, of so many each time, move everything and are measured: the price of a
# byte shows when they are compared with the steps beside them, which follow a schedule.
TRIED_STEPS = (1, 3, 5, 7, 9)
TRIED_EACH = 64 * MEASURED_EACH
# A schedule that moves this share of what may move needs no such comparison.
ALL_MOVED = 0.8
# The number of measured steps from which the speed of a tier is taken, as that of the median one.
KEPT_FLOWS = 3


@dataclass(slots=True, eq=False)
class Learned:
    """What is known of one program.

    steps, measured: how many steps have run, and how many of them were measured.
    records, flows, samples: the latest measurements of steps, tiers, and seconds by moved bytes.
    sampled: the latest steps in which live bytes were sampled.
    assumed: the measurement that `schedule` was made by.
    latest: the last measured step, see keep_sampled, and the schedule that it followed to its end.
    judged: measured steps that followed schedules, without the first ones.
    doubts: whether the next step must be measured, as the latest one waited longer than predicted,
    had other speeds, or had larger values than any before.
    limited: whether there is a budget.
    excess_bytes: the most by which a step exceeded the peak that its schedule predicted.
    probed_price: the price of a byte before the run has shown one.
    sizes: the largest sizes of values of symbolic size, for which schedules are made.
    guessed: whether `assumed` was scaled from a step of smaller values.
    """

    steps: int = 0
    measured: int = 0
    records: deque[StepMeasurement] = field(
        default_factory=lambda: deque[StepMeasurement](maxlen=KEPT_STEPS)
    )
    sampled: deque[StepMeasurement] = field(
        default_factory=lambda: deque[StepMeasurement](maxlen=KEPT_SAMPLED_STEPS)
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
    probed_price: float = 0.0
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
        """Drop what was scaled, as a step of the largest sizes has been measured."""
        if self.guessed:
            self.assumed, self.guessed, self.excess_bytes = None, False, 0
            self.forget_steps()

    def forget_steps(self) -> None:
        """Drop the steps from which seconds and bytes are taken."""
        self.records.clear()
        self.sampled.clear()

    @property
    def tries(self) -> bool:
        """Whether the next step moves everything, to measure what transfers take from compute."""
        return self.steps % TRIED_EACH in TRIED_STEPS and self._needs_price

    @property
    def _compares(self) -> bool:
        """Whether the seconds of the next step are compared, to find the price of a byte."""
        return self.steps % TRIED_EACH <= TRIED_STEPS[-1] + 1 and self._needs_price

    @property
    def measures(self) -> bool:
        """Whether the next step is measured."""
        if self.steps < SETTLED_STEPS or self.steps % MEASURED_EACH == 0 or self.doubts:
            return True
        return self._compares

    @property
    def rate(self) -> Rate | None:
        """How often the memory of the next step is sampled, if it is measured; None: never."""
        if self.measured == 0:
            return RATE  # Graphs are compiled in it.
        if self.measured < FIRST_STEPS and self._overlooks:
            return CLOSE_RATE
        corrects = FIRST_STEPS <= self.measured < SETTLED_STEPS - 1
        compares = self.measured > 1 and self._compares
        if corrects or compares or self.measured % SAMPLED_EACH == 0:
            return None
        return CLOSE_RATE if self.measured < SETTLED_STEPS else RATE

    @property
    def _overlooks(self) -> bool:
        """Whether a peak that counts may have been missed in all steps that were sampled."""
        return self.limited and all(s.unseen_seconds > UNSEEN_SECONDS for s in self.sampled)

    @property
    def changed_seconds(self) -> float:
        """By which share the seconds must have changed for another schedule."""
        return SETTLED_SECONDS if self.measured == SETTLED_STEPS - 1 else CHANGED_SECONDS

    @property
    def measured_price(self) -> float | None:
        """Seconds of compute for each byte moved, as steps without a budget showed; else None."""
        return None if self.limited else self.samples.find_price(self.probed_price)

    @property
    def price(self) -> float:
        """The measured price, else the one that the schedule counts."""
        measured = self.measured_price
        if measured is not None:
            return measured
        return 0.0 if self.schedule is None else self.schedule.price

    @property
    def _needs_price(self) -> bool:
        """Whether the price of a byte decides what moves.

        It does not under a budget, and not if transfers take nothing from compute, as on a GPU.
        """
        schedule = self.schedule
        if schedule is None or self.limited or not schedule.price:
            return False
        return schedule.moved_bytes < ALL_MOVED * schedule.saved_bytes

    def note(self, step: StepRun, latest: StepMeasurement) -> None:
        """Add a measured step."""
        self.measured += 1
        shown, followed = latest, step.followed
        if self.latest is not None and _are_equal(followed, self.latest[1]):
            shown = keep_sampled(self.latest[0], latest)
        self.latest = shown, followed
        self.limited = any(call.is_limited for call in step.calls)
        if step.followed is not None or len(self.records) == 0 or self.schedule is None:
            self.records.append(latest)
        if latest.sampled:
            self.sampled.append(latest)
        self.flows.append(latest.flows)
        self.owners = self.owners.update(latest.owners)
        if step.followed is not None and latest.live_bytes is not None:
            peak_bytes = latest.live_bytes - step.followed.base_bytes
            excess_bytes = peak_bytes - step.followed.peak_bytes - self._find_late_bytes(latest)
            self.excess_bytes = max(self.excess_bytes, excess_bytes)
        if self.steps > 2 and step.followed is not None:
            self.judged.append(latest)
        if self.steps > 1 and latest.step_seconds > 0.0 and not latest.sampled:
            seconds = latest.step_seconds - latest.exposed_seconds
            self.samples.add(Sample(self.steps, latest.moved_bytes, seconds))

    def _find_late_bytes(self, latest: StepMeasurement) -> int:
        """What the first graph found in memory and the schedule did not know of.

        The beginning of the first step of a process is not known, so that what ran in front of its
        graphs does not count in it.
        """
        if self.assumed is None or not latest.halves:
            return 0
        before, now = (each.halves[0].held_bytes or 0 for each in (self.assumed, latest))
        return max(0, now - before)

    def record(self) -> ProgramRecord | None:
        """What is known, for a report; None without a schedule."""
        if self.schedule is None or self.assumed is None:
            return None
        latest, followed = self.latest or (None, None)
        same = _are_equal(followed, self.schedule)
        return ProgramRecord(self.schedule, self.steps, self.assumed, latest if same else None)


def _are_equal(one: Schedule | None, other: Schedule | None) -> bool:
    """Whether both do the same, if with other predictions."""
    return one is not None and other is not None and one.calls == other.calls
