"""Threads that move bytes, and the transfers that they are handed: an executor with less per call.

Nothing here takes a lock that a finalizer could want, as each step is one that the interpreter
does not divide: who takes the view out of a transfer runs it or cancels it, and who takes a
callback out calls it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from queue import SimpleQueue
from typing import Any, Protocol

log = logging.getLogger(__name__)


class Runnable(Protocol):
    """What a worker runs; it keeps its errors to itself."""

    def run(self) -> None:
        """Do it, unless it was cancelled."""
        ...


class Transfer:
    """A call of `move(view)` in a worker: an IOFuture. Lets go of `view` when it ends."""

    __slots__ = ("__weakref__", "_callbacks", "_ended", "_move", "_outcome", "_running", "_views")

    def __init__(self, move: Callable[[memoryview], int], view: memoryview) -> None:
        self._move = move
        self._views = [view]
        self._outcome: int | Exception | None = None
        self._callbacks: deque[Callable[[Any], object]] = deque()
        self._ended = False
        self._running = threading.Lock()
        self._running.acquire()

    def done(self) -> bool:
        """Whether it ended: moved, failed or cancelled."""
        return self._ended

    def result(self, timeout: float | None = None) -> int:
        """Wait; what `move` returned or raised, CancelledError, or TimeoutError in `timeout` s."""
        if not self._ended:
            if not self._running.acquire(timeout=-1 if timeout is None else timeout):
                raise TimeoutError
            self._running.release()
        outcome = self._outcome
        if isinstance(outcome, int):
            return outcome
        raise CancelledError if outcome is None else outcome

    def cancel(self) -> bool:
        """True only if it never started and now never will."""
        if self._take_view() is None:
            return False
        self._end(None)
        return True

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Call `fn(self)` at the end, in any thread; at once when that is past."""
        self._callbacks.append(fn)
        if self._ended:
            self._call_back()

    def run(self) -> None:
        """In a worker: do it, unless it was cancelled."""
        view = self._take_view()
        if view is None:
            return
        try:
            outcome = self._move(view)
        except Exception as error:
            outcome = error
        except BaseException as error:
            # Only an Exception is told from what interrupts the thread that waits.
            outcome = RuntimeError(f"a transfer was ended by {error!r}")
        del view
        self._end(outcome)

    def _take_view(self) -> memoryview | None:
        try:
            return self._views.pop()
        except IndexError:
            return None

    def _end(self, outcome: int | Exception | None) -> None:
        self._outcome = outcome
        self._ended = True
        self._running.release()
        self._call_back()

    def _call_back(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.popleft()
            except IndexError:  # Another thread took the last one.
                return
            try:
                callback(self)
            except Exception:
                log.exception("a callback of a transfer failed")


class Workers:
    """`count` threads that run transfers in the order in which they were submitted.

    Each calls `enter()` first.
    """

    def __init__(
        self, count: int, name: str, *, enter: Callable[[], object] = lambda: None
    ) -> None:
        self._queue: SimpleQueue[Runnable | None] = SimpleQueue()
        self._closed = False
        # Daemons, as the interpreter would wait for others before the stores are closed at exit.
        self._threads = [
            threading.Thread(
                target=_work, args=(self._queue, enter), name=f"{name}_{i}", daemon=True
            )
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, move: Callable[[memoryview], int], view: memoryview) -> Transfer:
        """Start `move(view)`; RuntimeError after shutdown."""
        transfer = Transfer(move, view)
        self.start(transfer)
        return transfer

    def start(self, transfer: Runnable) -> None:
        """Let a thread run `transfer`; RuntimeError after shutdown."""
        if self._closed:
            raise RuntimeError("cannot start a transfer after shutdown")
        self._queue.put(transfer)

    def shutdown(self) -> None:
        """Finish what was submitted and end the threads. A second call does nothing."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        while self._threads:
            self._threads.pop().join()


def _work(queue: SimpleQueue[Runnable | None], enter: Callable[[], object]) -> None:
    enter()
    while True:
        transfer = queue.get()
        if transfer is None:
            return
        transfer.run()
        del transfer  # The next may be long in coming.
