"""Calls, programs and schedules: the words that planner, passes and runtime share about a step.

graph      one compiled forward and backward
call       one run of a graph's forward in a step, with its backward
program    the forwards and backwards of a step, in the order in which they ran
schedule   what each call of a program does with each of its values, and when
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fxoffload.ops import OpEvent
from fxoffload.sizes import MIB

Destination = Literal["keep", "host", "nvme"]
# A value of a step: the index of its call, and its name in the graph.
CallValue = tuple[int, str]
# A direction that moved fewer bytes than this does not show its speed.
LEAST_FLOW_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class Half:
    """One run of a forward or of a backward: `call` counts the forwards of the step from 0."""

    graph: str
    call: int
    forward: bool


Program = tuple[Half, ...]


@dataclass(frozen=True, slots=True)
class HalfMeasurement:
    """What one half took when it ran.

    clocks: by op, seconds of compute since the first op of the half; the clock stands still while
    an op runs. gap_seconds: from the last op of the half before to the first one of this.

    Bytes are those that the device holds beside our values, relative to when the step began: at
    fxoffload.begin_step, or else where its first graph was called. None where the device does not
    tell.
    held_bytes: at the first op. gap_bytes: the most between the last op of the half before and the
    first one of this. peak_bytes: by op, the most that was seen between it and the next one of the
    half. live_bytes: the same of all that is on the device, our values included.

    last_half: of a forward without a backward, the index of the half in which the last of its
    values died; None where that is not known.

    thread: the native id of the thread that ran the half; None of what several steps showed.
    """

    clocks: Mapping[OpEvent, float]
    gap_seconds: float = 0.0
    held_bytes: int | None = None
    gap_bytes: int | None = None
    peak_bytes: Mapping[OpEvent, int] = field(default_factory=dict)
    live_bytes: Mapping[OpEvent, int] = field(default_factory=dict)
    last_half: int | None = None
    thread: int | None = None

    @property
    def seconds(self) -> float:
        """Of compute, from the last op of the half before to the last one of this."""
        return self.gap_seconds + max(self.clocks.values(), default=0.0)


@dataclass(frozen=True, slots=True)
class Flow:
    """Bytes that transfers of one direction moved, in so many periods without a pause.

    seconds: of the periods together.
    """

    nbytes: int = 0
    seconds: float = 0.0
    periods: int = 0

    @property
    def speed(self) -> float:
        """Bytes per second; 0 where nothing was moved."""
        return self.nbytes / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class TierFlow:
    """What went to a tier, and what came back."""

    write: Flow = Flow()
    read: Flow = Flow()


@dataclass(frozen=True, slots=True)
class Owners:
    """Who else holds the values of a step that are inputs or outputs of its graphs.

    shared: groups of values that are the same tensor, saved by several calls. held: values whose
    memory the caller still held when a backward asked for them. let_go: values whose memory it had
    freed by then. Nothing is known of other values.
    """

    shared: tuple[tuple[CallValue, ...], ...] = ()
    held: frozenset[CallValue] = frozenset()
    let_go: frozenset[CallValue] = frozenset()

    def update(self, latest: Owners) -> Owners:
        """What is known when `latest` has been seen too."""
        return Owners(
            latest.shared,
            (self.held | latest.held) - latest.let_go,
            (self.let_go | latest.let_go) - latest.held,
        )


UNKNOWN_OWNERS = Owners()

# Bytes of values, by graph and name; of graphs whose sizes are symbolic only.
Sizes = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class StepMeasurement:
    """What one step took: each half of its program, and the transfers of each tier.

    base_bytes: what the device held when the step began, of this process and others; None where it
    does not tell. exposed_seconds: of waiting for transfers. step_seconds: from the first
    to the last op. price: seconds of compute that each byte took that was written or read, as
    several steps showed; None where they did not. excess_bytes: by how much steps exceeded the peak
    that their schedule predicted. sizes: the largest that values of symbolic size had. sampled:
    whether live bytes were sampled in all steps that the seconds are from, which made these slower.
    unseen_seconds: the longest time between graphs, of a step that was sampled, without a sample.
    """

    halves: Sequence[HalfMeasurement]
    flows: Mapping[str, TierFlow] = field(default_factory=dict[str, TierFlow])
    base_bytes: int | None = None
    owners: Owners = UNKNOWN_OWNERS
    exposed_seconds: float = 0.0
    step_seconds: float = 0.0
    price: float | None = None
    excess_bytes: int = 0
    sizes: Sizes = field(default_factory=dict[str, Mapping[str, int]])
    sampled: bool = False
    unseen_seconds: float = 0.0

    @property
    def live_bytes(self) -> int | None:
        """The most of HalfMeasurement.live_bytes; None where the device does not tell."""
        seen = (nbytes for half in self.halves for nbytes in half.live_bytes.values())
        return max(seen, default=None)

    @property
    def moved_bytes(self) -> int:
        """Bytes written and read, of all tiers whose transfers are watched."""
        return sum(flow.write.nbytes + flow.read.nbytes for flow in self.flows.values())


@dataclass(frozen=True, slots=True)
class CallSchedule:
    """What the ops of one call do.

    destinations: where each value goes. waits: the values whose writes must have ended before the
    op returns. reads: the values whose reads start at the op, whatever call they belong to. passes:
    by value, that of another call which is the same tensor and is asked for next: it takes over
    what the wait of the first one returns.
    """

    destinations: Mapping[str, Destination]
    waits: Mapping[OpEvent, tuple[CallValue, ...]] = field(default_factory=dict)
    reads: Mapping[OpEvent, tuple[CallValue, ...]] = field(default_factory=dict)
    passes: Mapping[str, CallValue] = field(default_factory=dict[str, CallValue])


@dataclass(frozen=True, slots=True)
class Schedule:
    """A decision for every value of every call of `program`, and what it is predicted to lead to.

    peak_bytes: predicted activation peak of the step. budget_bytes: the peak that was asked for;
    None without a number. base_bytes: of JoinedStep.
    step_seconds: from the first to the last op of the step. saved_bytes: of all values.
    kept_for: why values that may move are kept. price: seconds of compute that it counts for each
    byte written or read. bandwidths: by tier, the bytes per second of writes
    and reads that it counts on. sizes: that it was made for; see StepMeasurement.
    """

    program: Program
    calls: tuple[CallSchedule, ...]
    budget_bytes: int | None
    peak_bytes: int
    unmoved_peak_bytes: int
    step_seconds: float
    exposed_seconds: float
    saved_bytes: int
    moved_bytes: int
    kept_for: str = ""
    price: float = 0.0
    base_bytes: int = 0
    bandwidths: Mapping[str, tuple[float, float]] = field(
        default_factory=dict[str, tuple[float, float]]
    )
    sizes: Sizes = field(default_factory=dict[str, Mapping[str, int]])

    def __str__(self) -> str:
        graphs = {half.graph for half in self.program}
        limit = ""
        if self.budget_bytes is not None:
            limit = f" under a budget of {self.budget_bytes / MIB:.1f} MiB"
        return (
            f"step of {len(self.calls)} call(s) of {len(graphs)} graph(s): moves "
            f"{self.moved_bytes / MIB:.1f} of {self.saved_bytes / MIB:.1f} MiB saved; predicted "
            f"peak {self.peak_bytes / MIB:.1f} MiB ({self.unmoved_peak_bytes / MIB:.1f} MiB with "
            f"nothing moved){limit}, "
            f"{self.step_seconds:.3f} s, {self.exposed_seconds:.3f} s of it exposed"
            + "".join(
                f"; {tier} at {write / 1e9:.2g} GB/s, back at {read / 1e9:.2g}"
                for tier, (write, read) in self.bandwidths.items()
            )
        )


@dataclass(frozen=True, slots=True)
class ProgramRecord:
    """What a thread knows of one program that it runs.

    steps: how often it ran. assumed: the measurement that `schedule` was made by. latest: the last
    measured step, if it did what `schedule` says; else None.
    """

    schedule: Schedule
    steps: int
    assumed: StepMeasurement
    latest: StepMeasurement | None = None
