"""How fast an engine moves bytes, from a short probe of several rounds."""

from __future__ import annotations

import math
import mmap
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fxoffload.errors import StoreFull
from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture

PROBE_BYTES = 8 * 2**20
PROBE_COUNT = 4
# One sample of 30 ms differs by factors from the next: rounds are spread over time, and a quartile
# that a disturbance of some of them does not move is taken.
ROUNDS = 7
PAUSE_SECONDS = 0.05
LIMIT_SECONDS = 1.0
_LEAST_BYTES = 4096


class Bandwidth(NamedTuple):
    """Bytes per second of writes and of reads."""

    write: float
    read: float

    @property
    def round_trip(self) -> float:
        """Bytes per second that go there and come back."""
        return 1 / (1 / self.write + 1 / self.read)


class ProbeSlots(NamedTuple):
    """Slots of `nbytes` each."""

    offsets: tuple[int, ...]
    nbytes: int


def measure_bandwidth(engine: IOEngine, *, rounds: int = ROUNDS) -> Bandwidth:
    """Bytes per second of writes and of reads, rounded down to two significant digits.

    The upper quartile of `rounds` rounds, as what disturbs one only makes it slower; of fewer where
    these take longer than LIMIT_SECONDS. Nothing else may use the engine.
    """
    slots = take_slots(engine)
    try:
        return time_transfers(engine, slots, rounds=rounds)
    finally:
        for offset in slots.offsets:
            engine.free(offset)


def take_slots(engine: IOEngine) -> ProbeSlots:
    """Slots for a probe, smaller ones where the engine has little room; StoreFull without any."""
    nbytes = PROBE_BYTES
    while True:
        offsets: list[int] = []
        try:
            for _ in range(PROBE_COUNT):
                offsets.append(engine.allocate(nbytes))  # noqa: PERF401 - freed on failure
        except StoreFull:
            for offset in offsets:
                engine.free(offset)
            if nbytes <= _LEAST_BYTES:
                raise
            nbytes //= 2
        else:
            return ProbeSlots(tuple(offsets), nbytes)


def time_transfers(engine: IOEngine, slots: ProbeSlots, *, rounds: int) -> Bandwidth:
    """As measure_bandwidth, with slots that the caller took and will free."""
    # Private, as tensors are: a shared map is a file in memory, whose pages cost direct I/O more.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = memoryview(mmap.mmap(-1, slots.nbytes * len(slots.offsets), flags=flags))
    # Random bytes: disks that compress would make a constant block look too fast.
    block = os.urandom(slots.nbytes)
    views: list[memoryview] = []
    for index in range(len(slots.offsets)):
        view = memory[index * slots.nbytes : (index + 1) * slots.nbytes]
        view[:] = block
        views.append(view)
    # The first write of new space is slow, and training writes every slot again and again.
    _time_all(engine.write, views, slots.offsets)
    seconds: list[tuple[float, float]] = []
    end = time.perf_counter() + LIMIT_SECONDS
    for index in range(rounds):
        if index:
            if time.perf_counter() > end:
                break
            time.sleep(PAUSE_SECONDS)
        write = _time_all(engine.write, views, slots.offsets)
        seconds.append((write, _time_all(engine.read, views, slots.offsets)))
    return Bandwidth(
        *(
            round_down(len(memory) / _find_lower_quartile(each), digits=2)
            for each in zip(*seconds, strict=True)
        )
    )


def _find_lower_quartile(samples: Sequence[float]) -> float:
    ordered = sorted(samples)
    return ordered[(len(ordered) - 1) // 4]


def round_down(value: float, *, digits: int = 1) -> float:
    """`value` > 0 with this many significant digits, never more than `value`."""
    power = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.floor(value / power) * power


def _time_all(
    start: Callable[[memoryview, int], IOFuture],
    views: Sequence[memoryview],
    offsets: Sequence[int],
) -> float:
    begin = time.perf_counter()
    futures = [start(view, offset) for view, offset in zip(views, offsets, strict=True)]
    for future in futures:
        future.result()
    return time.perf_counter() - begin
