"""The protocol between the store and what moves its bytes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol


class IOFuture(Protocol):
    """A transfer that was started; `concurrent.futures.Future[int]` is one."""

    def done(self) -> bool:
        """Whether the transfer ended: moved, failed or cancelled."""
        ...

    def result(self) -> int:
        """Wait; the bytes moved. Raises the error of the transfer, or CancelledError."""
        ...

    def cancel(self) -> bool:
        """True only if the transfer never started and now never will."""
        ...

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Call `fn(self)` at the end, in any thread; at once when that is past."""
        ...


class IOEngine(Protocol):
    """Slots for bytes, and asynchronous transfers to and from them.

    Addresses, offsets and lengths of a transfer are multiples of `alignment`. Memory under a
    view stays valid until its future is done. `allocate`, `free` and `reserve` take one caller at
    a time (the store calls them under its lock); `write` and `read` may be called by any thread.
    """

    @property
    def name(self) -> str:
        """Which path moves the bytes: "posix direct", "kvikio buffered", "memory" and so on."""
        ...

    @property
    def alignment(self) -> int:
        """What addresses, offsets and lengths are multiples of."""
        ...

    def allocate(self, nbytes: int) -> int:
        """The offset of a slot of `nbytes`; StoreFull when there is no room."""
        ...

    def free(self, offset: int) -> None:
        """Take back the slot at `offset`; no transfer of it may be in flight."""
        ...

    def reserve(self, nbytes: int) -> None:
        """Make sure that `nbytes` in all can be held; StoreFull otherwise."""
        ...

    def describe(self, offset: int) -> str:
        """Where `offset` lies, for messages."""
        ...

    def write(self, view: memoryview, offset: int) -> IOFuture:
        """Start to write `view` to the slot at `offset`."""
        ...

    def read(self, view: memoryview, offset: int) -> IOFuture:
        """Start to fill `view` from the slot at `offset`."""
        ...

    def close(self) -> None:
        """Finish what was started and give everything back; a second call does nothing."""
        ...

    def abandon(self) -> None:
        """In a forked child, which has none of our threads: let go of the files of the parent.

        Nothing else may be called afterwards.
        """
        ...


class FollowingFuture(Future[int]):
    """A transfer that ends as another one does, the one that `follow` is given."""

    _inner: IOFuture | None = None

    def follow(self, inner: IOFuture) -> None:
        """End when `inner` does; called once."""
        self._inner = inner
        inner.add_done_callback(self._end)

    def cancel(self) -> bool:
        """True only if `inner` never started and now never will."""
        inner = self._inner
        return inner is not None and inner.cancel()

    def conclude(self, outcome: int | Exception | None) -> int | Exception | None:
        """What this ends with when `inner` ended with `outcome`, see find_outcome; may raise it."""
        return outcome

    def _end(self, inner: IOFuture) -> None:
        self._inner = None  # Each future knows the other.
        try:
            outcome = self.conclude(find_outcome(inner))
        except Exception as error:
            outcome = error
        if outcome is None:
            super().cancel()
        elif isinstance(outcome, Exception):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)


def find_outcome(future: IOFuture) -> int | Exception | None:
    """Wait for `future`: the bytes moved, its error of any kind, or None when it was cancelled.

    What interrupts the wait itself (KeyboardInterrupt) is raised.
    """
    try:
        return future.result()
    except CancelledError:
        return None
    except Exception as error:
        # Its frames hold what the caller holds, the error too: a ring that keeps tensors alive.
        return error.with_traceback(None)
