"""An engine whose writes wait, and whose transfers fail, when a test says so."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

from fxoffload.runtime.engines.ioengine import IOEngine


class WatchedFuture(Future[int]):
    """Tells when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited = threading.Event()

    def result(self, timeout: float | None = None) -> int:
        self.awaited.set()
        return super().result(timeout)


@dataclass
class FlakyEngine:
    """An engine whose writes wait for `gate`, and whose transfers fail when told to."""

    inner: IOEngine
    gate: threading.Event = field(default_factory=threading.Event)
    queued: list[tuple[WatchedFuture, memoryview, int]] = field(default_factory=list)
    write_failures: int = 0
    read_failures: int = 0
    short_reads: int = 0
    reads: int = 0

    name = "flaky"

    def __post_init__(self) -> None:
        self.gate.set()
        self.alignment = self.inner.alignment
        self.move_device = None
        self.allocate, self.free = self.inner.allocate, self.inner.free
        self.reserve, self.describe = self.inner.reserve, self.inner.describe
        self.abandon = self.inner.abandon

    def write(self, view: memoryview, offset: int) -> Future[int]:
        if self.write_failures:
            self.write_failures -= 1
            return fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        if self.gate.is_set():
            return self.inner.write(view, offset)
        future = WatchedFuture()
        self.queued.append((future, view, offset))
        return future

    def start(self, index: int = 0) -> None:
        """Let a queued write begin, so that it can no longer be cancelled, but not end."""
        assert self.queued[index][0].set_running_or_notify_cancel()

    def finish(self, index: int = 0) -> None:
        future, view, offset = self.queued.pop(index)
        if future.running() or future.set_running_or_notify_cancel():
            future.set_result(self.inner.write(view, offset).result())

    def read(self, view: memoryview, offset: int) -> Future[int]:
        self.reads += 1
        if self.read_failures:
            self.read_failures -= 1
            return fail(OSError(errno.EIO, os.strerror(errno.EIO)))
        if self.short_reads:
            self.short_reads -= 1
            future: Future[int] = Future()
            future.set_result(len(view) - 1)
            return future
        return self.inner.read(view, offset)

    def close(self) -> None:
        while self.queued:
            self.finish()
        self.inner.close()


def fail(error: OSError) -> Future[int]:
    future: Future[int] = Future()
    future.set_exception(error)
    return future
