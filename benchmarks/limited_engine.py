"""A drive slower than the one at hand: an engine around another one, and the plan told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

from fxoffload import OffloadConfig, planning
from fxoffload.planner.link import Link
from fxoffload.runtime import kernels
from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture


class LimitedEngine:
    """Moves no more than `bytes_per_second` in each direction, one transfer after the other."""

    def __init__(self, engine: IOEngine, bytes_per_second: float) -> None:
        self._engine = engine
        self._writes = _Channel(engine.write, bytes_per_second)
        self._reads = _Channel(engine.read, bytes_per_second)

    @property
    def name(self) -> str:
        """The name of the engine within."""
        return f"{self._engine.name}, limited"

    @property
    def alignment(self) -> int:
        """As of the engine within."""
        return self._engine.alignment

    def allocate(self, nbytes: int) -> int:
        """As of the engine within."""
        return self._engine.allocate(nbytes)

    def free(self, offset: int) -> None:
        """As of the engine within."""
        self._engine.free(offset)

    def reserve(self, nbytes: int) -> None:
        """As of the engine within."""
        self._engine.reserve(nbytes)

    def describe(self, offset: int) -> str:
        """As of the engine within."""
        return self._engine.describe(offset)

    def write(self, view: memoryview, offset: int) -> IOFuture:
        """Queue a write."""
        return self._writes.submit(view, offset)

    def read(self, view: memoryview, offset: int) -> IOFuture:
        """Queue a read."""
        return self._reads.submit(view, offset)

    def close(self) -> None:
        """Finish what was queued."""
        self._writes.close()
        self._reads.close()
        self._engine.close()


class _Channel:
    """One direction: a transfer is done no sooner than the bytes of all before it allow."""

    def __init__(
        self, start: Callable[[memoryview, int], IOFuture], bytes_per_second: float
    ) -> None:
        self._start = start
        self._bytes_per_second = bytes_per_second
        self._free = 0.0
        self._worker = ThreadPoolExecutor(1)

    def submit(self, view: memoryview, offset: int) -> IOFuture:
        return self._worker.submit(self._move, view, offset, time.monotonic())

    def close(self) -> None:
        self._worker.shutdown()

    def _move(self, view: memoryview, offset: int, asked: float) -> int:
        moved = self._start(view, offset).result()
        # Counted from when it was asked for: that a thread wakes late slows no drive down.
        self._free = max(asked, self._free) + view.nbytes / self._bytes_per_second
        time.sleep(max(0.0, self._free - time.monotonic()))
        return moved


@contextmanager
def limit_drives(bytes_per_second: float | None) -> Generator[None, None, None]:
    """Within, stores that are opened are as slow as that, and so are the links of plans.

    None is no limit.
    """
    if bytes_per_second is None:
        yield
        return

    def open_limited(config: OffloadConfig) -> LimitedEngine:
        return LimitedEngine(open_engine(config), bytes_per_second)

    def measure_limited(config: OffloadConfig) -> dict[str, Link]:
        links = measure_links(config)
        nvme = links["nvme"]
        limited = replace(
            nvme,
            write_bytes_per_second=min(bytes_per_second, nvme.write_bytes_per_second),
            read_bytes_per_second=min(bytes_per_second, nvme.read_bytes_per_second),
        )
        return {**links, "nvme": limited}

    open_engine, measure_links = kernels.open_engine, planning.measure_links
    with (
        patch.object(kernels, "open_engine", open_limited),
        patch.object(planning, "measure_links", measure_limited),
    ):
        yield
