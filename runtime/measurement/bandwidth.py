"""Measure the bandwidth of an engine by a short probe of several rounds."""

from __future__ import annotations

import math
import mmap
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple

import torch

from fxoffload.errors import StoreFull
from fxoffload.runtime.engines.ioengine import DeviceMover, IOEngine, IOFuture

PROBE_BYTES = 8 * 2**20
PROBE_COUNT = 4
# Samples of 30 ms vary by factors. So the rounds are spread over time, and the result is a
# quartile, which a disturbance of a few rounds does not change.
ROUNDS = 7
PAUSE_SECONDS = 0.05
LIMIT_SECONDS = 1.0
_LEAST_BYTES = 4096


_Starts = Sequence[Callable[[int], IOFuture]]  # Of transfers, by the offset of the slot.


class Bandwidth(NamedTuple):
    """Bytes per second of writes and of reads."""

    write: float
    read: float

    @property
    def round_trip(self) -> float:
        """Bytes per second that are written and then read back."""
        return 1 / (1 / self.write + 1 / self.read)


class ProbeSlots(NamedTuple):
    """The slots of a probe, `nbytes` each."""

    offsets: tuple[int, ...]
    nbytes: int


class Batch(NamedTuple):
    """Transfers that were started together.

    seconds: until the last one ended. latencies_seconds: of each, from its start to its end.
    """

    seconds: float
    latencies_seconds: tuple[float, ...]


class Round(NamedTuple):
    """One batch of writes, and one of reads of the same slots."""

    write: Batch
    read: Batch


def measure_bandwidth(engine: IOEngine) -> Bandwidth:
    """Bytes per second of writes and of reads, rounded down to two significant digits.

    The upper quartile of the rounds, as disturbances only make a round slower. Runs ROUNDS rounds,
    or fewer if they take longer than LIMIT_SECONDS. Nothing else may use the engine.
    """
    slots = take_slots(engine)
    try:
        rounds = sample_transfers(engine, slots, rounds=ROUNDS)
    finally:
        for offset in slots.offsets:
            engine.free(offset)
    nbytes = slots.nbytes * len(slots.offsets)
    return Bandwidth(*(_find_speed(nbytes, batches) for batches in zip(*rounds, strict=True)))


def take_slots(engine: IOEngine, nbytes: int | None = None) -> ProbeSlots:
    """Allocate slots for a probe, smaller ones if the engine has little room.

    nbytes: of each slot, PROBE_BYTES by default. Raises StoreFull if it has no room.
    """
    nbytes = PROBE_BYTES if nbytes is None else nbytes
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


def _find_speed(nbytes: int, batches: Sequence[Batch]) -> float:
    """Bytes per second of a quick batch of `nbytes`, as in measure_bandwidth."""
    seconds = _find_lower_quartile([batch.seconds for batch in batches])
    return round_down(nbytes / seconds, digits=2)


def sample_transfers(
    engine: IOEngine, slots: ProbeSlots, *, rounds: int, limit_seconds: float = LIMIT_SECONDS
) -> list[Round]:
    """Write and read the slots, `rounds` times or until `limit_seconds` have passed.

    The bytes are in memory of the current CUDA device where the engine moves it and torch has one.
    """
    # Random bytes: a disk that compresses would write a constant block too fast.
    block = os.urandom(slots.nbytes)
    if engine.move_device is not None and torch.cuda.is_available():
        write, read = _bind_device_memory(engine.move_device, block, len(slots.offsets))
    else:
        write, read = _bind_host_memory(engine, block, len(slots.offsets))
    # Not measured: the first write of new space is slow, but training rewrites the same slots.
    _time_all(write, slots.offsets)
    found: list[Round] = []
    end = time.perf_counter() + limit_seconds
    for index in range(rounds):
        if index:
            if time.perf_counter() > end:
                break
            time.sleep(PAUSE_SECONDS)
        written = _time_all(write, slots.offsets)
        found.append(Round(written, _time_all(read, slots.offsets)))
    return found


def _bind_host_memory(engine: IOEngine, block: bytes, count: int) -> tuple[_Starts, _Starts]:
    """The writes and the reads of `count` blocks of host memory."""
    # A private map, like tensors: a shared one is a file in memory, which makes direct I/O slower.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = memoryview(mmap.mmap(-1, len(block) * count, flags=flags))
    views = [memory[start : start + len(block)] for start in range(0, len(memory), len(block))]
    for view in views:
        view[:] = block
    return [partial(engine.write, it) for it in views], [partial(engine.read, it) for it in views]


def _bind_device_memory(mover: DeviceMover, block: bytes, count: int) -> tuple[_Starts, _Starts]:
    """The same of memory of the current CUDA device."""
    filled = torch.frombuffer(bytearray(block), dtype=torch.uint8).cuda()
    tensors = [filled.clone() for _ in range(count)]
    torch.cuda.synchronize()
    writes, reads = (
        [partial(mover, tensor, write=write) for tensor in tensors] for write in (True, False)
    )
    return writes, reads


def _find_lower_quartile(samples: Sequence[float]) -> float:
    ordered = sorted(samples)
    return ordered[(len(ordered) - 1) // 4]


def round_down(value: float, *, digits: int = 1) -> float:
    """Round `value`, above 0, down to so many significant digits."""
    power = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.floor(value / power) * power


def _time_all(starts: _Starts, offsets: Sequence[int]) -> Batch:
    ended: SimpleQueue[float] = SimpleQueue()
    begin = time.perf_counter()
    futures: list[IOFuture] = []
    for start, offset in zip(starts, offsets, strict=True):
        note = _make_note(ended, time.perf_counter())
        future = start(offset)
        future.add_done_callback(note)
        futures.append(future)
    for future in futures:
        future.result()
    seconds = time.perf_counter() - begin
    # A future may wake its waiters before it runs its callbacks: wait for these, too.
    return Batch(seconds, tuple(ended.get() for _ in futures))


def _make_note(ended: SimpleQueue[float], start: float) -> Callable[[IOFuture], None]:
    return lambda _: ended.put(time.perf_counter() - start)
