"""The read of a device tensor, or of a piece of it: the engine's read, then the copy."""

from __future__ import annotations

from collections.abc import Callable

from fxoffload.runtime.engines.future import FollowingFuture
from fxoffload.runtime.engines.ioengine import IOFuture


class CudaRead(FollowingFuture):
    """A read into `view` that ends when the engine's has ended and `arrive()` has returned.

    arrive: starts the copy to the device; called only if every byte was read.
    """

    __slots__ = ("_arrive", "_nbytes", "_view")

    def __init__(self, view: memoryview, arrive: Callable[[], None]) -> None:
        super().__init__()
        self._view: memoryview | None = view
        self._nbytes = len(view)
        self._arrive: Callable[[], None] | None = arrive

    def start(self, read: Callable[[memoryview], IOFuture]) -> None:
        """Start the engine's read by `read(view)`, once; its error is that of this read."""
        view, self._view = self._view, None
        assert view is not None
        try:
            inner = read(view)
        except Exception as error:
            self._arrive = None
            self.end(error)
            return
        self.follow(inner)

    def conclude(self, outcome: int | Exception | None) -> int | Exception | None:
        """Start the copy if all bytes are here, and return `outcome`."""
        # Dropped at the end: it references the tensor.
        arrive, self._arrive = self._arrive, None
        assert arrive is not None
        if outcome == self._nbytes:
            arrive()
        return outcome
