"""When the ops of one compiled graph ran: the seconds of compute between them, over some steps."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass, field

import torch

from fxoffload.ops import Clocks, OpEvent

SKIPPED_RUNS = 1  # The first step meets cold memory.
RUNS = 3

Mark = float | torch.cuda.Event


def mark_now(device: torch.device) -> Mark:
    """This moment for what `device` computes: seconds of time.perf_counter, or of a GPU an event.

    The host runs ahead of a GPU, so that its own time says nothing of what nodes take there.
    """
    if device.type != "cuda":
        return time.perf_counter()
    with torch.cuda.device(device):
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream())
        return event


@dataclass(slots=True)
class _Run:
    """One run of a forward or of a backward: when each op began and when it ended."""

    forward: bool
    marks: dict[OpEvent, tuple[Mark, Mark]] = field(
        default_factory=dict[OpEvent, tuple[Mark, Mark]]
    )

    def find_clocks(self) -> dict[OpEvent, float]:
        """The clock stands still while an op runs. Waits for events that have not passed."""
        clock, left = 0.0, None
        clocks: dict[OpEvent, float] = {}
        for event, (enter, leave) in self.marks.items():
            if left is not None:
                clock += _find_seconds(left, enter)
            clocks[event] = clock
            left = leave
        return clocks


def _find_seconds(start: Mark, end: Mark) -> float:
    """From mark to mark; of ops on two devices, which have no clock in common, nothing."""
    if isinstance(start, float | int) and isinstance(end, float | int):
        return end - start
    if isinstance(start, float | int) or isinstance(end, float | int) or start.device != end.device:
        return 0.0
    end.synchronize()
    return start.elapsed_time(end) / 1e3


class StepRecorder:
    """Records the ops of one graph in its first steps; safe in every thread.

    A clock starts at the first op of a forward or of a backward and stands still within ops, so
    that it counts compute and no waiting. `agreed`: the clocks of all ranks, see fxoffload.replan.
    """

    def __init__(self) -> None:
        self.agreed: Clocks | None = None
        self._lock = threading.Lock()
        self._open: dict[int, _Run] = {}
        self._runs: dict[bool, list[_Run]] = {True: [], False: []}
        self._closed = False

    def record(self, kind: str, name: str, enter: Mark, leave: Mark) -> None:
        """An op ran from `enter` to `leave`, see mark_now."""
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
        """The median clock of every op once enough steps have run; None before. Ends recording.

        To be called between steps.
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
                    for event, clock in run.find_clocks().items():
                        found.setdefault(event, []).append(clock)
            return {event: statistics.median(clocks) for event, clocks in found.items()}

    def _end(self, run: _Run) -> None:
        runs = self._runs[run.forward]
        if len(runs) < SKIPPED_RUNS + RUNS:
            runs.append(run)

    def _has_enough(self) -> bool:
        return all(len(runs) == SKIPPED_RUNS + RUNS for runs in self._runs.values())
