"""Transfers of the engine that start, or end, when the device has come to an event."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fxoffload.runtime.engines.future import FollowingFuture, TransferFuture, take_once
from fxoffload.runtime.engines.ioengine import IOFuture


class DeferredTransfer(FollowingFuture):
    """A transfer that starts once the event `after` has passed.

    start: starts the engine's transfer; it is dropped once it was called, or the transfer
    cancelled.
    """

    __slots__ = ("_after", "_starts")

    def __init__(self, after: torch.cuda.Event, start: Callable[[], IOFuture]) -> None:
        super().__init__()
        self._after = after
        # The thread that takes it either starts or cancels the transfer.
        self._starts = [start]

    def run(self) -> None:
        """In a worker: wait for the event, and start the engine's transfer."""
        start = take_once(self._starts)
        if start is None:
            return
        try:
            self._after.synchronize()
            inner = start()
        except Exception as error:
            self.end(error)
            return
        del start  # It holds the memory that moves; the engine does so from here on.
        self.follow(inner)

    def cancel(self) -> bool:
        """Try to cancel; True only if the engine's transfer has not started and never will."""
        # Not within `except`: an error that a callback looks at would have the one that is handled
        # as its context, with the caller's frames, and tensors in them.
        if take_once(self._starts) is None:
            return super().cancel()
        self.end(None)  # The engine's transfer does not exist yet.
        return True


class HostWrite(TransferFuture):
    """The write of a value that stays in its staging buffer: it ends when its copy has ended.

    No thread waits for that: waking one takes more of the interpreter's time than all else that an
    offload does. The device calls `note_copied` at later ops, and whoever asks learns the truth.
    """

    __slots__ = ("_copied", "_sizes")

    def __init__(self, copied: torch.cuda.Event, nbytes: int) -> None:
        super().__init__()
        self._copied = copied
        # The thread that takes the size ends or cancels the write.
        self._sizes = [nbytes]

    def note_copied(self, *, wait: bool = False) -> bool:
        """End the write if its copy has ended; False if not. wait: wait for that."""
        if self._sizes and wait:
            self._copied.synchronize()
        elif self._sizes and not self._copied.query():
            return False
        nbytes = take_once(self._sizes)
        if nbytes is not None:
            self.end(nbytes)
        return True

    def done(self) -> bool:
        """Whether the copy has ended, or the write was cancelled."""
        self.note_copied()
        return super().done()

    def result(self, timeout: float | None = None) -> int:
        """Wait for the copy, without a limit of time; return the bytes."""
        self.note_copied(wait=True)
        return super().result(timeout)

    def cancel(self) -> bool:
        """Try to cancel; True only if the copy had not ended."""
        if self.note_copied() or take_once(self._sizes) is None:
            return False
        self.end(None)
        return True
