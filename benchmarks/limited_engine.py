"""Slow down a drive: wrap its engine, and plan for the lower speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from fxoffload import OffloadConfig, machine
from fxoffload.planner.link import Link
from fxoffload.runtime import stores
from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture

Transfer = Callable[[memoryview, int], IOFuture]


class LimitedEngine:
    """Moves at most `bytes_per_second` in each direction, one transfer after the other.

    `bytes_per_second` may change at any time. The wrapped engine does everything else.
    """

    def __init__(self, engine: IOEngine, bytes_per_second: float) -> None:
        self._engine = engine
        self._workers: list[ThreadPoolExecutor] = []
        self.name = f"{engine.name}, limited"
        self.move_device = None
        self.bytes_per_second = bytes_per_second
        self.write = self._limit(engine.write)
        self.read = self._limit(engine.read)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None:
        """Finish what was queued."""
        for worker in self._workers:
            worker.shutdown()
        self._engine.close()

    def _limit(self, start: Transfer) -> Transfer:
        """Delay the end of each transfer until all bytes up to it have had their time."""
        worker = ThreadPoolExecutor(1)
        self._workers.append(worker)
        free = 0.0

        def move(view: memoryview, offset: int, asked: float) -> int:
            nonlocal free
            moved = start(view, offset).result()
            # The time starts at the request: a thread that wakes late does not slow the drive down.
            free = max(asked, free) + view.nbytes / self.bytes_per_second
            time.sleep(max(0.0, free - time.monotonic()))
            return moved

        return lambda view, offset: worker.submit(move, view, offset, time.monotonic())


@contextmanager
def limit_drives(bytes_per_second: float | None) -> Generator[None]:
    """A context in which opened stores, and the links of plans, have at most this speed.

    None: no limit.
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

    open_engine, measure_links = stores.open_engine, machine.measure_links
    with (
        patch.object(stores, "open_engine", open_limited),
        patch.object(machine, "measure_links", measure_limited),
    ):
        yield
