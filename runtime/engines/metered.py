"""An engine that wraps another one and measures its transfers while a window is open."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch

from fxoffload.runtime.engines.ioengine import DeviceMover, IOEngine, IOFuture, find_outcome
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
        mover = inner.move_device
        self.move_device: DeviceMover | None = None
        if mover is not None:
            self.move_device = partial(self._move_device, mover)

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
        return self._watch(partial(self.inner.write, view, offset), len(view), write=True)

    def read(self, view: memoryview, offset: int) -> IOFuture:
        """Start to fill `view` from the slot at `offset`."""
        return self._watch(partial(self.inner.read, view, offset), len(view), write=False)

    def _move_device(
        self, mover: DeviceMover, tensor: torch.Tensor, offset: int, *, write: bool
    ) -> IOFuture:
        move = partial(mover, tensor, offset, write=write)
        return self._watch(move, tensor.nbytes, write=write)

    def _watch(self, move: Callable[[], IOFuture], nbytes: int, *, write: bool) -> IOFuture:
        """Start `move`; when it ends, add a record to each window that is open now."""
        records = [window.writes if write else window.reads for window in self.windows]
        start = time.perf_counter()
        future = move()
        for each in records:
            future.add_done_callback(partial(_note, each, start, nbytes))
        return future


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


def _note(records: list[_Record], start: float, nbytes: int, future: IOFuture) -> None:
    if find_outcome(future) == nbytes:
        records.append((start, time.perf_counter(), nbytes))
