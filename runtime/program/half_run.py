"""One half of a step as it runs: when its ops ran, and what the device held meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fxoffload.ops import OpEvent
from fxoffload.runtime.measurement.clocks import Mark, find_clocks, find_seconds
from fxoffload.schedule import Half, HalfMeasurement


@dataclass(slots=True, eq=False)
class HalfRun:
    """The times of the ops of one half, and the bytes that the device held; see HalfMeasurement.

    unseen_seconds: the longest time in front of its first op without a sample.
    last_half: the index of the half that ran when a value of this forward was the last to die.
    thread: the native id of the thread that runs the half.
    """

    half: Half
    held_bytes: int | None = None
    gap_bytes: int | None = None
    marks: dict[OpEvent, tuple[Mark, Mark]] = field(
        default_factory=dict[OpEvent, tuple[Mark, Mark]]
    )
    peak_bytes: dict[OpEvent, int] = field(default_factory=dict[OpEvent, int])
    live_bytes: dict[OpEvent, int] = field(default_factory=dict[OpEvent, int])
    unseen_seconds: float = 0.0
    last_half: int | None = None
    thread: int | None = None


def find_step_seconds(runs: Sequence[HalfRun]) -> float:
    """From the first op of a step to its last one; 0 where too few ops ran."""
    marks = [mark for run in runs for mark in run.marks.values()]
    return find_seconds(marks[0][0], marks[-1][1]) if marks else 0.0


def measure_halves(runs: Sequence[HalfRun], base_bytes: int) -> list[HalfMeasurement]:
    """What each of the halves of a step took; bytes relative to `base_bytes`."""
    found: list[HalfMeasurement] = []
    left: Mark | None = None
    read = {run.half.call for run in runs if not run.half.forward}
    for run in runs:
        marks = list(run.marks.values())
        gap = find_seconds(left, marks[0][0]) if left is not None and marks else 0.0
        found.append(
            HalfMeasurement(
                find_clocks(run.marks),
                gap,
                None if run.held_bytes is None else run.held_bytes - base_bytes,
                None if run.gap_bytes is None else run.gap_bytes - base_bytes,
                {event: nbytes - base_bytes for event, nbytes in run.peak_bytes.items()},
                {event: nbytes - base_bytes for event, nbytes in run.live_bytes.items()},
                None if run.half.call in read else run.last_half,
                run.thread,
            )
        )
        left = marks[-1][1] if marks else left
    return found
