"""When the ops of one compiled graph ran: the seconds of compute between them, over some steps."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

SKIPPED_RUNS = 1  # The first step meets cold memory.
RUNS = 3

Event = tuple[str, str]  # Kind of op, and name of the value.
Clocks = Mapping[Event, float]


@dataclass(slots=True)
class _Run:
    """One run of a forward or of a backward: the clock stands still while an op runs."""

    forward: bool
    left: float
    clock: float = 0.0
    clocks: dict[Event, float] = field(default_factory=dict[Event, float])


class StepRecorder:
    """Records the ops of one graph in its first steps; safe in every thread.

    A clock starts at the first op of a forward or of a backward and stands still within ops, so
    that it counts compute and no waiting. `agreed`: the clocks of all ranks, see fxoffload.replan.
    """

    def __init__(self) -> None:
        self.agreed: Clocks | None = None
        self._lock = threading.Lock()
        self._open: dict[int, _Run] = {}
        self._runs: dict[bool, list[dict[Event, float]]] = {True: [], False: []}
        self._closed = False

    def record(self, kind: str, name: str, enter: float, leave: float) -> None:
        """An op ran from `enter` to `leave`, in seconds of time.perf_counter."""
        if self._closed:
            return
        forward = kind in ("offload", "release")
        with self._lock:
            thread = threading.get_ident()
            run = self._open.get(thread)
            if run is None or run.forward is not forward or (kind, name) in run.clocks:
                if run is not None:
                    self._end(run)
                    if self._has_enough():
                        self._closed = True
                        return
                run = self._open[thread] = _Run(forward, enter)
            run.clock += enter - run.left
            run.clocks[kind, name] = run.clock
            run.left = leave

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
            found: dict[Event, list[float]] = {}
            for runs in self._runs.values():
                for clocks in runs[SKIPPED_RUNS:]:
                    for event, clock in clocks.items():
                        found.setdefault(event, []).append(clock)
            return {event: statistics.median(clocks) for event, clocks in found.items()}

    def _end(self, run: _Run) -> None:
        runs = self._runs[run.forward]
        if len(runs) < SKIPPED_RUNS + RUNS:
            runs.append(run.clocks)

    def _has_enough(self) -> bool:
        return all(len(runs) == SKIPPED_RUNS + RUNS for runs in self._runs.values())
