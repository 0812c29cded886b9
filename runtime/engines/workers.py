"""Threads that run transfers: an executor with less overhead per call than concurrent.futures.

Nothing here takes a lock that a finalizer could need. Atomic pops take its place: the thread that
pops the view of a transfer runs or cancels the transfer, and the thread that pops a callback calls
it.
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
    """A job of a worker; `run` must not raise."""

    def run(self) -> None:
        """Do the job, unless it was cancelled."""
        ...


class Transfer:
    """An IOFuture: a call of `move(view)` in a worker. It drops `view` when it ends."""

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
        """Whether the transfer ended: moved, failed or cancelled."""
        return self._ended

    def result(self, timeout: float | None = None) -> int:
        """Wait for the end; return the result of `move`.

        Raises the exception of `move`, CancelledError, or TimeoutError after `timeout` seconds.
        """
        if not self._ended:
            if not self._running.acquire(timeout=-1 if timeout is None else timeout):
                raise TimeoutError
            self._running.release()
        outcome = self._outcome
        if isinstance(outcome, int):
            return outcome
        raise CancelledError if outcome is None else outcome

    def cancel(self) -> bool:
        """Try to cancel; True only if the transfer has not started and never will."""
        if self._take_view() is None:
            return False
        self._end(None)
        return True

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Call `fn(self)` when the transfer ends, in any thread; at once if it has ended."""
        self._callbacks.append(fn)
        if self._ended:
            self._call_back()

    def run(self) -> None:
        """In a worker: run the transfer, unless it was cancelled."""
        view = self._take_view()
        if view is None:
            return
        try:
            outcome = self._move(view)
        except Exception as error:
            outcome = error
        except BaseException as error:
            # `result` must not raise it: the waiting thread would take it for its own interrupt.
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

    Each thread calls `enter()` when it starts.
    """

    def __init__(
        self, count: int, name: str, *, enter: Callable[[], object] = lambda: None
    ) -> None:
        self._queue: SimpleQueue[Runnable | None] = SimpleQueue()
        self._closed = False
        # Daemon threads: the interpreter joins other threads before its exit handlers run, which
        # close the stores.
        self._threads = [
            threading.Thread(
                target=_work, args=(self._queue, enter), name=f"{name}_{i}", daemon=True
            )
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, move: Callable[[memoryview], int], view: memoryview) -> Transfer:
        """Start `move(view)` in a thread; raises RuntimeError after shutdown."""
        transfer = Transfer(move, view)
        self.start(transfer)
        return transfer

    def start(self, transfer: Runnable) -> None:
        """Let a thread run `transfer`; raises RuntimeError after shutdown."""
        if self._closed:
            raise RuntimeError("cannot start a transfer after shutdown")
        self._queue.put(transfer)

    def shutdown(self) -> None:
        """Finish the submitted transfers and end the threads. A second call does nothing."""
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
        del transfer  # Drop the reference, as the next transfer may come much later.
