"""An engine that wraps another one and measures its transfers while a window is open."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture, find_outcome
from fxoffload.schedule import Flow, TierFlow

_Record = tuple[float, float, int]  # Start and end of a transfer in seconds, and its bytes.


class Window:
    """Records the transfers of one engine that start while the window is open."""

    def __init__(self, engine: MeteredEngine) -> None:
        self.writes: list[_Record] = []  # Any thread appends, which is atomic.
        self.reads: list[_Record] = []
        self._engine = engine

    def close(self) -> TierFlow:
        """End the recording; return the flow of the transfers that have ended."""
        self._engine.close_window(self)
        return TierFlow(find_flow(self.writes), find_flow(self.reads))


class MeteredEngine:
    """The engine `inner`, whose transfers windows can record."""

    def __init__(self, inner: IOEngine) -> None:
        self.inner = inner
        self.windows: tuple[Window, ...] = ()
        self._lock = threading.Lock()
        self.alignment = inner.alignment
        self.allocate, self.free, self.reserve = inner.allocate, inner.free, inner.reserve
        self.describe, self.close, self.abandon = inner.describe, inner.close, inner.abandon

    @property
    def name(self) -> str:
        """The name of the inner engine."""
        return self.inner.name

    def open_window(self) -> Window:
        """Record the transfers that start from now on."""
        window = Window(self)
        with self._lock:
            self.windows = (*self.windows, window)
        return window

    def close_window(self, window: Window) -> None:
        """Record no further transfers in `window`."""
        with self._lock:
            self.windows = tuple(each for each in self.windows if each is not window)

    def write(self, view: memoryview, offset: int) -> IOFuture:
        """Start to write `view` to the slot at `offset`."""
        records = [window.writes for window in self.windows]
        return _watch(records, self.inner.write, view, offset)

    def read(self, view: memoryview, offset: int) -> IOFuture:
        """Start to fill `view` from the slot at `offset`."""
        records = [window.reads for window in self.windows]
        return _watch(records, self.inner.read, view, offset)


def open_windows(engines: Mapping[str, IOEngine]) -> dict[str, Window]:
    """Open a window for each tier whose engine is a MeteredEngine."""
    return {
        tier: engine.open_window()
        for tier, engine in engines.items()
        if isinstance(engine, MeteredEngine)
    }


def find_flow(records: list[_Record]) -> Flow:
    """The bytes, and the total time and number of periods with at least one transfer."""
    seconds, periods = 0.0, 0
    end = float("-inf")
    for start, stop, _ in sorted(records):
        if start > end:
            periods += 1
        seconds += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return Flow(sum(nbytes for _, _, nbytes in records), seconds, periods)


def _watch(
    records: Sequence[list[_Record]],
    move: Callable[[memoryview, int], IOFuture],
    view: memoryview,
    offset: int,
) -> IOFuture:
    """Start `move`; when it ends, add a record to each of `records`."""
    start = time.perf_counter()
    future = move(view, offset)
    for each in records:
        future.add_done_callback(partial(_note, each, start, len(view)))
    return future


def _note(records: list[_Record], start: float, nbytes: int, future: IOFuture) -> None:
    if find_outcome(future) == nbytes:
        records.append((start, time.perf_counter(), nbytes))
