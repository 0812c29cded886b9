"""The write of a device tensor's bytes: a copy to host memory, then a write of the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import torch

from fxoffload.runtime.engines.ioengine import FollowingFuture, IOFuture


class CudaWrite(FollowingFuture):
    """The write of a staging buffer: waits for the event `copied`, then calls `write(view)`.

    write: starts the engine's write; None for the host tier, whose write ends with the copy.
    """

    def __init__(
        self,
        copied: torch.cuda.Event,
        view: memoryview,
        write: Callable[[memoryview], IOFuture] | None,
    ) -> None:
        super().__init__()
        self._copied = copied
        self._write = write
        # pop is atomic: the thread that gets the view either writes it or cancels the write.
        self._views = deque([view])

    def run(self) -> None:
        """In a worker: wait for the copy, and start the engine's write."""
        try:
            view = self._views.pop()
        except IndexError:
            return
        try:
            self._copied.synchronize()
            if self._write is None:
                self.set_result(len(view))
                return
            inner = self._write(view)
        except Exception as error:
            self.set_exception(error)
            return
        self.follow(inner)

    def cancel(self) -> bool:
        """Try to cancel; True only if the engine has not started to write and never will."""
        try:
            self._views.pop()
        except IndexError:
            return super().cancel()
        return Future.cancel(self)  # The engine's write does not exist yet.
