"""Futures of transfers, which cost less than `concurrent.futures.Future` for each transfer.

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
from typing import Any, Generic, TypeVar

from fxoffload.runtime.engines.ioengine import IOFuture, find_outcome

log = logging.getLogger(__name__)

Item = TypeVar("Item")


class TransferFuture:
    """A transfer that ends when `end` is called, once, in any thread."""

    __slots__ = ("__weakref__", "_callbacks", "_ended", "_outcome", "_running")

    def __init__(self) -> None:
        self._outcome: int | Exception | None = None
        self._callbacks: deque[Callable[[Any], object]] = deque()
        self._ended = False
        self._running = threading.Lock()
        self._running.acquire()

    def done(self) -> bool:
        """Whether the transfer ended: moved, failed or cancelled."""
        return self._ended

    def result(self, timeout: float | None = None) -> int:
        """Wait for the end; return the bytes moved.

        Raises the error of the transfer, CancelledError, or TimeoutError after `timeout` seconds.
        """
        if not self._ended:
            if not self._running.acquire(timeout=-1 if timeout is None else timeout):
                raise TimeoutError
            self._running.release()
        outcome = self._outcome
        if isinstance(outcome, int):
            return outcome
        raise CancelledError if outcome is None else outcome

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Call `fn(self)` when the transfer ends, in any thread; at once if it has ended."""
        self._callbacks.append(fn)
        if self._ended:
            self._call_back()

    def end(self, outcome: int | Exception | None) -> None:
        """End the transfer with the bytes moved, an error, or None if it was cancelled."""
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
                # The thread goes on, and other callbacks are called, as concurrent.futures does it.
                log.exception("a callback of a transfer failed")


def take_once(items: list[Item]) -> Item | None:
    """The one item of `items`, for one caller in any thread; None for all others."""
    try:
        return items.pop()
    except IndexError:
        return None


class ViewFuture(TransferFuture, Generic[Item]):
    """A transfer of `view`, which the thread that takes the view runs or cancels."""

    __slots__ = ("_views",)

    def __init__(self, view: Item) -> None:
        super().__init__()
        self._views = [view]

    def take_view(self) -> Item | None:
        """The view, for one caller; None for all others."""
        return take_once(self._views)

    def cancel(self) -> bool:
        """Try to cancel; True only if the transfer has not started and never will."""
        if self.take_view() is None:
            return False
        self.end(None)
        return True


class FollowingFuture(TransferFuture):
    """A transfer that ends when another one does, which is given to `follow`."""

    __slots__ = ("_inner",)

    def __init__(self) -> None:
        super().__init__()
        self._inner: IOFuture | None = None

    def follow(self, inner: IOFuture) -> None:
        """Let this transfer end when `inner` does; called once."""
        self._inner = inner
        inner.add_done_callback(self._end_with)

    def cancel(self) -> bool:
        """Try to cancel `inner`; True only if it has not started and never will."""
        inner = self._inner
        return inner is not None and inner.cancel()

    def conclude(self, outcome: int | Exception | None) -> int | Exception | None:
        """The outcome of this transfer; `outcome` is that of `inner`, see find_outcome.

        An exception that it raises becomes the outcome.
        """
        return outcome

    def _end_with(self, inner: IOFuture) -> None:
        self._inner = None  # Breaks the reference cycle of the two futures.
        try:
            outcome = self.conclude(find_outcome(inner))
        except Exception as error:
            # As in find_outcome: the traceback would keep tensors alive.
            outcome = error.with_traceback(None)
        self.end(outcome)
