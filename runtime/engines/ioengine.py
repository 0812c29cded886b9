"""The protocol of engines, which move the store's bytes, and of their futures."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, Protocol

import torch


class IOFuture(Protocol):
    """A transfer that was started; `concurrent.futures.Future[int]` would be one, too."""

    def done(self) -> bool:
        """Whether the transfer ended: moved, failed or cancelled."""
        ...

    def result(self) -> int:
        """Wait for the end; return the bytes moved, or raise the error or CancelledError."""
        ...

    def cancel(self) -> bool:
        """Try to cancel; True only if the transfer has not started and never will."""
        ...

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Call `fn(self)` when the transfer ends, in any thread; at once if it has ended."""
        ...


class DeviceMover(Protocol):
    """Moves memory of a CUDA device without host memory in between."""

    def __call__(self, tensor: torch.Tensor, offset: int, *, write: bool) -> IOFuture:
        """Start to write the uint8 `tensor` to the slot at `offset`, or to fill it from there.

        No work of the device that is queued may still use the memory. At the end of a read, all
        later work sees its bytes.
        """
        ...


class IOEngine(Protocol):
    """Slots for bytes, and asynchronous transfers to and from them.

    Addresses, offsets and lengths of a transfer are multiples of `alignment`. Memory under a
    view stays valid until its future is done. `allocate`, `free` and `reserve` take one caller at
    a time (the store calls them under its lock); `write` and `read` may be called by any thread.
    """

    @property
    def name(self) -> str:
        """The library and the path that move the bytes, such as "posix direct" or "memory"."""
        ...

    @property
    def alignment(self) -> int:
        """The bytes of which addresses, offsets and lengths are multiples."""
        ...

    @property
    def move_device(self) -> DeviceMover | None:
        """Moves device memory as `write` and `read` move host memory; None if nothing does."""
        ...

    def allocate(self, nbytes: int) -> int:
        """Allocate a slot of `nbytes` and return its offset; raises StoreFull without room."""
        ...

    def free(self, offset: int) -> None:
        """Free the slot at `offset`; no transfer of it may be in flight."""
        ...

    def reserve(self, nbytes: int) -> None:
        """Make sure that the slots can hold `nbytes` in all; raises StoreFull otherwise."""
        ...

    def describe(self, offset: int) -> str:
        """The place of `offset` in words, for messages."""
        ...

    def write(self, view: memoryview, offset: int) -> IOFuture:
        """Start to write `view` to the slot at `offset`."""
        ...

    def read(self, view: memoryview, offset: int) -> IOFuture:
        """Start to fill `view` from the slot at `offset`."""
        ...

    def close(self) -> None:
        """Finish the transfers, then free everything; a second call does nothing."""
        ...

    def abandon(self) -> None:
        """In a forked child, which has none of the engine's threads: drop the parent's files.

        Nothing else may be called afterwards.
        """
        ...


def find_outcome(future: IOFuture) -> int | Exception | None:
    """Wait for `future`; return the bytes moved, its exception, or None if it was cancelled.

    An interrupt of the wait itself (KeyboardInterrupt) is raised.
    """
    try:
        return future.result()
    except CancelledError:
        return None
    except Exception as error:
        # The frames of the traceback reference the caller's variables, among them the error: a
        # reference cycle that would keep tensors alive.
        return error.with_traceback(None)
