"""What is known of one program: its measured steps, and the schedule that was made by them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fxoffload.runtime.program.advice import JUDGED_STEPS
from fxoffload.runtime.program.calls import StepRun
from fxoffload.runtime.program.price import Sample, Samples
from fxoffload.runtime.program.sampler import CLOSE_RATE, RATE, Rate
from fxoffload.runtime.program.value_sizes import merge_sizes, scale_measurement
from fxoffload.schedule import (
    UNKNOWN_OWNERS,
    HalfMeasurement,
    Owners,
    ProgramRecord,
    Schedule,
    Sizes,
    StepMeasurement,
    TierFlow,
)

# Steps of one program from which medians are taken.
KEPT_STEPS = 5
# A step is measured when its program has run no more often than this, and then each so many steps.
FIRST_STEPS = 5
MEASURED_EACH = 16
# Of the measured steps, each so many is sampled at the close rate, which makes it slower. One of
# the KEPT_STEPS always is: medians leave out its seconds, and the highest bytes count.
CLOSE_EACH = 4
# Steps of a program that move everything beside steps that follow a schedule, so that the price of
# a byte shows: these, and then each so many steps. Each of them is measured.
TRIED_STEPS = (1, 3, 5, 7, 9)
TRIED_EACH = 16 * MEASURED_EACH
# Where not everything moves, which shows the price: less than this part of what may move.
ALL_MOVED = 0.8
# Measured steps whose transfers tell the speed of a tier: the one in the middle counts.
KEPT_FLOWS = 3


@dataclass(slots=True, eq=False)
class Learned:
    """One program. assumed: the measurement that the schedule was made by.

    latest: the last measured step, and the schedule that it followed to its end.
    samples: what its steps took, by what they moved. limited: whether there is a budget.
    excess_bytes: the most by which a step exceeded the peak that its schedule predicted.
    measured: how many steps were measured. judged: measured steps that followed schedules, behind
    the first ones.
    doubts: whether the latest step waited for transfers that should have been hidden, saw other
    speeds, or had larger values than any before: then the next one is measured.
    sizes: the largest that values of symbolic size had; schedules are made for them. guessed:
    whether `assumed` is scaled from a step of smaller values.
    """

    steps: int = 0
    measured: int = 0
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
        """Whether the next step moves everything, to measure what transfers take from compute."""
        due = self.steps in TRIED_STEPS or self.steps % TRIED_EACH == 0
        return due and self._needs_price

    @property
    def measures(self) -> bool:
        """Whether the next step is measured."""
        if self.steps < FIRST_STEPS or self.steps % MEASURED_EACH == 0 or self.doubts:
            return True
        return self.steps <= TRIED_STEPS[-1] + 1 and self._needs_price

    @property
    def rate(self) -> Rate:
        """How often the memory of the next step is sampled, if it is measured."""
        return CLOSE_RATE if self.measured % CLOSE_EACH == 1 else RATE

    @property
    def _needs_price(self) -> bool:
        """Whether the price of a byte decides what moves.

        Under a budget the budget does, and no price does where transfers take nothing from compute,
        as on a GPU.
        """
        schedule = self.schedule
        if schedule is None or self.limited or not schedule.price:
            return False
        return schedule.moved_bytes < ALL_MOVED * schedule.saved_bytes

    def note(self, step: StepRun, latest: StepMeasurement) -> None:
        """Add a measured step."""
        self.measured += 1
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
