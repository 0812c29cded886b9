"""The write of a device tensor's bytes: first the copy to host memory, then the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import torch

from fxoffload.runtime.engines.ioengine import FollowingFuture, IOFuture


class CudaWrite(FollowingFuture):
    """The write of a staging buffer by `write(view)`, behind the event of the copy into it.

    Without `write` there is nothing to do but to wait for the copy.
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
        """In a thread of ours: wait for the copy, and let the engine write."""
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
        """True only if the engine never started to write and now never will."""
        try:
            self._views.pop()
        except IndexError:
            return super().cancel()
        return Future.cancel(self)  # There is no write of the engine to follow yet.
