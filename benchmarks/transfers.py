"""Moves many values of one size, with a bounded window in flight: by an engine, and by a store.

All values are written, then read, then freed; this can be repeated. The window has a few distinct
values, which are written in turn: a write of one has ended before the next write of it starts.
Reads have the same order. Raises RuntimeError for missing or wrong bytes.
"""

from __future__ import annotations

import mmap
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch

from fxoffload.runtime.devices.buffers import LEAST_HUGE_BYTES
from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.runtime.store.ticket import Ticket

TIER = "nvme"
Direction = Literal["write", "read"]
DIRECTIONS: tuple[Direction, ...] = ("write", "read")
Started = TypeVar("Started")
# torch's large tensors start this far from an aligned address.
_PHASE = 64


class Timing(NamedTuple):
    """Wall seconds of `nbytes`, and processor seconds of all threads of the process.

    The time of kernel threads is not included.
    """

    nbytes: int
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Values:
    """Values of `nbytes` each, all different: memory to write from, and to read into.

    Aligned memory for engines, a tensor where torch would put it for stores.
    """

    nbytes: int
    sources: Sequence[memoryview]
    targets: Sequence[memoryview]
    tensors: Sequence[torch.Tensor] = ()

    @property
    def window(self) -> int:
        """How many there are."""
        return len(self.sources)


def make_values(nbytes: int, window: int) -> Values:
    """Values of random bytes, as some drives compress.

    The memory for reads is in huge pages for sizes for which the store requests them, too.
    """
    memory = [_map_memory(nbytes + mmap.PAGESIZE) for _ in range(window)]
    for number, each in enumerate(memory):
        each[:] = np.random.default_rng(number).bytes(len(each))
    tensors = [torch.frombuffer(each, dtype=torch.uint8)[_PHASE:][:nbytes] for each in memory]
    huge = nbytes >= LEAST_HUGE_BYTES
    targets = [_map_memory(nbytes, huge=huge) for _ in range(window)]
    return Values(nbytes, [each[:nbytes] for each in memory], targets, tensors)


def time_work(work: Callable[[], None], nbytes: int) -> Timing:
    """Call `work()`, which moves `nbytes`."""
    cpu, start = time.process_time(), time.perf_counter()
    work()
    return Timing(nbytes, time.perf_counter() - start, time.process_time() - cpu)


def time_transfers(transfers: EngineTransfers | StoreTransfers, nbytes: int) -> list[Timing]:
    """Write, then read; `nbytes` each."""
    timings = [time_work(work, nbytes) for work in (transfers.write, transfers.read)]
    transfers.free()
    return timings


def move_window(
    count: int, window: int, start: Callable[[int], Started], finish: Callable[[Started], object]
) -> None:
    """Start transfers 0 to `count` - 1 in turn, with at most `window` that have not finished."""
    ahead: deque[Started] = deque()
    for number in range(count):
        if len(ahead) == window:
            finish(ahead.popleft())
        ahead.append(start(number))
    while ahead:
        finish(ahead.popleft())


class EngineTransfers:
    """`count` values by the engine alone: memory and slots are made once and used again."""

    def __init__(self, engine: IOEngine, values: Values, count: int) -> None:
        self._engine = engine
        self._values = values
        self._slots = [engine.allocate(values.nbytes) for _ in range(count)]

    def write(self) -> None:
        """Write every value; return when all are on disk."""
        self._transfer(self._engine.write, self._values.sources)

    def read(self) -> None:
        """Read every value, each into the memory of the one before it in the window."""
        self._transfer(self._engine.read, self._values.targets)

    def free(self) -> None:
        """Compare the values that were read last, and overwrite their ends."""
        for source, target in zip(self._values.sources, self._values.targets, strict=True):
            array = np.frombuffer(target, np.uint8)
            _check_value(np.frombuffer(source, np.uint8), array)
            array[:8] = array[-8:] = 0

    def close(self) -> None:
        """Give the slots back."""
        for slot in self._slots:
            self._engine.free(slot)

    def _transfer(
        self, move: Callable[[memoryview, int], IOFuture], views: Sequence[memoryview]
    ) -> None:
        nbytes, window = self._values.nbytes, self._values.window

        def finish(future: IOFuture) -> None:
            if (moved := future.result()) != nbytes:
                raise RuntimeError(f"{self._engine.name}: {moved} of {nbytes} bytes moved")

        move_window(
            len(self._slots), window, lambda i: move(views[i % window], self._slots[i]), finish
        )


class StoreTransfers:
    """`count` values as a compiled graph moves them: offload, release, prefetch, wait."""

    def __init__(self, store: OffloadStore, values: Values, count: int) -> None:
        self._store = store
        self._values = values
        self._count = count
        self._tickets: list[Ticket] = []

    @property
    def moved_bytes(self) -> int:
        """What the engine was given to write, since the last `free`."""
        return sum(ticket.write_bytes for ticket in self._tickets)

    def write(self) -> None:
        """Offload every value, and release each when the window is full."""

        def offload(number: int) -> Ticket:
            tensor = self._values.tensors[number % self._values.window]
            self._tickets.append(self._store.offload(tensor, "value", TIER, False))
            return self._tickets[-1]

        self._move("written", offload, lambda ticket: self._store.release(ticket, True))

    def read(self) -> None:
        """Prefetch as far ahead as the window allows; drop each value when it has come."""

        def prefetch(number: int) -> int:
            self._store.prefetch(self._tickets[number])
            return number

        def finish(number: int) -> None:
            value = self._store.wait(self._tickets[number]).numpy()
            source = self._values.tensors[number % self._values.window].numpy()
            # Only the ends are compared, as the comparison is part of the measured time.
            _check_value(source[:64], value[:64])
            _check_value(source[-64:], value[-64:])

        self._move("read", prefetch, finish)

    def free(self) -> None:
        """Free the tickets, and with them the slots."""
        for ticket in self._tickets:
            self._store.free(ticket)
        self._tickets.clear()

    def _move(
        self, done: str, start: Callable[[int], Started], finish: Callable[[Started], object]
    ) -> None:
        counter = f"{done}_bytes"
        before = getattr(self._store.statistics(), counter)
        move_window(self._count, self._values.window, start, finish)
        moved = getattr(self._store.statistics(), counter) - before
        expected = self._count * self._values.nbytes
        if moved != expected:
            raise RuntimeError(f"the store has {done} {moved} of {expected} bytes")


def _map_memory(nbytes: int, *, huge: bool = False) -> memoryview:
    # A private map, as tensors have: writes from a shared map are slower.
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge:
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def _check_value(source: np.ndarray, value: np.ndarray) -> None:
    if not np.array_equal(source, value):
        raise RuntimeError(f"a value of {source.size} bytes came back changed")
