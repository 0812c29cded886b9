"""Record when the ops of a compiled graph run: the seconds of compute between them."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fxoffload.ops import Clocks, OpEvent

SKIPPED_RUNS = 1  # The first step is slower, as its memory is cold.
RUNS = 3

Mark = float | torch.cuda.Event


def mark_now(device: torch.device) -> Mark:
    """The present time in the work of `device`: time.perf_counter() in seconds; a GPU's event.

    The host runs ahead of a GPU, so the host's time does not measure the nodes on a GPU.
    """
    if device.type != "cuda":
        return time.perf_counter()
    with torch.cuda.device(device):
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream())
        return event


@dataclass(slots=True)
class _Run:
    """One run of a forward or a backward; marks: the start and end of each op."""

    forward: bool
    marks: dict[OpEvent, tuple[Mark, Mark]] = field(
        default_factory=dict[OpEvent, tuple[Mark, Mark]]
    )


def find_clocks(marks: Mapping[OpEvent, tuple[Mark, Mark]]) -> dict[OpEvent, float]:
    """The clock of each op in seconds of compute, not counting the time within ops.

    marks: when each op began and ended, in order. Waits for CUDA events that have not passed.
    """
    clock, left = 0.0, None
    clocks: dict[OpEvent, float] = {}
    for event, (enter, leave) in marks.items():
        if left is not None:
            clock += find_seconds(left, enter)
        clocks[event] = clock
        left = leave
    return clocks


def find_seconds(start: Mark, end: Mark) -> float:
    """Seconds from `start` to `end`; 0 if they are of two devices, which have no common clock."""
    if isinstance(start, float | int) and isinstance(end, float | int):
        return end - start
    if isinstance(start, float | int) or isinstance(end, float | int) or start.device != end.device:
        return 0.0
    end.synchronize()
    return start.elapsed_time(end) / 1e3


class StepRecorder:
    """Records the ops of one graph in its first steps; thread-safe.

    A clock starts at the first op of a forward or a backward and stops within ops, so it counts
    compute and no waiting. agreed: the mean clocks of all ranks, set by fxoffload.replan.
    """

    def __init__(self) -> None:
        self.agreed: Clocks | None = None
        self._lock = threading.Lock()
        self._open: dict[int, _Run] = {}
        self._runs: dict[bool, list[_Run]] = {True: [], False: []}
        self._closed = False

    def record(self, kind: str, name: str, enter: Mark, leave: Mark) -> None:
        """Record that an op ran from `enter` to `leave`, which are from mark_now.

        kind: "offload", "release", "prefetch" or "wait". name: of the value.
        """
        if self._closed:
            return
        forward = kind in ("offload", "release")
        with self._lock:
            thread = threading.get_ident()
            run = self._open.get(thread)
            if run is None or run.forward is not forward or (kind, name) in run.marks:
                if run is not None:
                    self._end(run)
                    if self._has_enough():
                        self._closed = True
                        return
                run = self._open[thread] = _Run(forward)
            run.marks[kind, name] = enter, leave

    def find_clocks(self) -> Clocks | None:
        """The median clock of every op, once enough steps have run; None before that.

        Call it between steps. Recording ends once it has returned clocks.
        """
        with self._lock:
            if not self._closed:
                for run in self._open.values():
                    self._end(run)
                self._open.clear()
                self._closed = self._has_enough()
            if not self._closed:
                return None
            found: dict[OpEvent, list[float]] = {}
            for runs in self._runs.values():
                for run in runs[SKIPPED_RUNS:]:
                    for event, clock in find_clocks(run.marks).items():
                        found.setdefault(event, []).append(clock)
            return {event: statistics.median(clocks) for event, clocks in found.items()}

    def _end(self, run: _Run) -> None:
        runs = self._runs[run.forward]
        if len(runs) < SKIPPED_RUNS + RUNS:
            runs.append(run)

    def _has_enough(self) -> bool:
        return all(len(runs) == SKIPPED_RUNS + RUNS for runs in self._runs.values())
