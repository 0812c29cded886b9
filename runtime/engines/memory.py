"""The engine in host memory: it is the host tier, and replaces the disk with ioengine="memory"."""

from __future__ import annotations

import mmap

import numpy as np

from fxoffload.errors import StoreFull
from fxoffload.runtime.engines.memory_limit import find_memory_limit
from fxoffload.runtime.engines.slots import SlotAllocator
from fxoffload.runtime.engines.workers import Transfer, Workers
from fxoffload.sizes import format_bytes

_SLOT_ALIGNMENT = 64
# Python's mmap has this name from 3.13 on; 0x4000 is its value on all architectures of Linux but 3.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


class MemoryEngine:
    """Slots in one private anonymous map; one worker thread writes them, another one reads them.

    The map reserves no memory: a page takes memory from the first write to it. Slots are reused, so
    memory use is bounded by `capacity_bytes` (by default half of what this process may use, like a
    file system in memory) and by the most that was stored at a time. Pages are kept for the next
    step, as fresh pages are expensive. A round ends when the last slot is freed; then pages that
    were not used in this round or the one before are given back to the system.
    """

    name = "memory"
    alignment = 1
    move_device = None

    def __init__(self, capacity_bytes: int | None = None) -> None:
        if capacity_bytes is None:
            capacity_bytes = find_memory_limit() // 2
        self.capacity_bytes = capacity_bytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._map: mmap.mmap | None = mmap.mmap(-1, max(capacity_bytes, 1), flags=flags)
        self._memory = np.frombuffer(self._map, np.uint8)
        self._slots = SlotAllocator(_SLOT_ALIGNMENT)
        self._writers = Workers(1, "fxoffload-memory-write")
        self._readers = Workers(1, "fxoffload-memory-read")
        # The highest ends of slots in this round and in the one before, and the end of kept pages.
        self._round_bytes = self._last_round_bytes = self._held_bytes = 0

    @property
    def end_bytes(self) -> int:
        """The bytes from the start of the map to the end of the last slot."""
        return self._slots.end_bytes

    @property
    def held_bytes(self) -> int:
        """The bytes of the map that slots have used since pages were last given back."""
        return max(self._held_bytes, self._round_bytes)

    def allocate(self, nbytes: int) -> int:
        """Allocate a slot of `nbytes`, return its offset; raises StoreFull beyond the capacity."""
        offset = self._slots.allocate(nbytes)
        end = self._slots.end_bytes
        if end > self.capacity_bytes:
            self._slots.free(offset)
            raise self._full(end)
        self._round_bytes = max(self._round_bytes, end)
        return offset

    def free(self, offset: int) -> None:
        """Free the slot at `offset`; the last one ends the round."""
        self._slots.free(offset)
        if self._slots.end_bytes == 0:
            self._end_round()

    def reserve(self, nbytes: int) -> None:
        """Raise StoreFull unless the capacity is at least `nbytes`."""
        if nbytes > self.capacity_bytes:
            raise self._full(nbytes)

    def describe(self, offset: int) -> str:
        """The place of `offset` in words, for messages."""
        return f"host memory at {offset} (ioengine memory)"

    def write(self, view: memoryview, offset: int) -> Transfer[memoryview]:
        """Start to copy `view` to `offset`."""
        return self._writers.submit(lambda source: _copy(self._slice(offset, source), source), view)

    def read(self, view: memoryview, offset: int) -> Transfer[memoryview]:
        """Start to fill `view` from `offset`."""
        return self._readers.submit(lambda target: _copy(target, self._slice(offset, target)), view)

    def close(self) -> None:
        """Finish the transfers, then free the memory. A second call does nothing."""
        self._writers.shutdown()
        self._readers.shutdown()
        self.abandon()

    def abandon(self) -> None:
        """Drop the memory; in a forked child, so that no page of it is copied on a write."""
        # The map is unmapped together with the last array that points into it.
        self._memory = np.empty(0, np.uint8)
        self._map = None

    def _end_round(self) -> None:
        kept = max(self._round_bytes, self._last_round_bytes)
        kept = -(-kept // mmap.PAGESIZE) * mmap.PAGESIZE
        held = max(self._held_bytes, kept)
        if held > kept and self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED, kept, held - kept)
            held = kept
        self._held_bytes, self._last_round_bytes, self._round_bytes = held, self._round_bytes, 0

    def _slice(self, offset: int, view: memoryview) -> np.ndarray:
        return self._memory[offset : offset + len(view)]

    def _full(self, nbytes: int) -> StoreFull:
        return StoreFull(
            f"host memory: the values need {format_bytes(nbytes)}, the limit is "
            f"{format_bytes(self.capacity_bytes)}; raise host_budget or memory_budget"
        )


def _copy(target: memoryview | np.ndarray, source: memoryview | np.ndarray) -> int:
    # numpy copies without the interpreter lock; an assignment of a memoryview would hold it.
    array = np.frombuffer(target, np.uint8)
    np.copyto(array, np.frombuffer(source, np.uint8))
    return array.size
