"""The write of a device tensor: a copy to host memory, then a write of the engine if any."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fxoffload.runtime.engines.future import FollowingFuture, TransferFuture, take_once
from fxoffload.runtime.engines.ioengine import IOFuture


class CudaWrite(FollowingFuture):
    """The write of a staging buffer: waits for the event `copied`, then calls `write(view)`.

    write: starts the engine's write.
    """

    __slots__ = ("_copied", "_views", "_write")

    def __init__(
        self,
        copied: torch.cuda.Event,
        view: memoryview,
        write: Callable[[memoryview], IOFuture],
    ) -> None:
        super().__init__()
        self._copied = copied
        self._write = write
        # The thread that takes the view either writes it or cancels the write.
        self._views = [view]

    def run(self) -> None:
        """In a worker: wait for the copy, and start the engine's write."""
        view = take_once(self._views)
        if view is None:
            return
        try:
            self._copied.synchronize()
            inner = self._write(view)
        except Exception as error:
            self.end(error)
            return
        self.follow(inner)

    def cancel(self) -> bool:
        """Try to cancel; True only if the engine has not started to write and never will."""
        # Not within `except`: an error that a callback looks at would have the one that is handled
        # as its context, with the caller's frames, and tensors in them.
        if take_once(self._views) is None:
            return super().cancel()
        self.end(None)  # The engine's write does not exist yet.
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
