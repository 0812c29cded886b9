"""An arena of staging buffers, cut from chunks of pinned memory: bounded, and never unpinned.

Each call that pins memory takes milliseconds and stalls the device, so a step that requests the
same buffers as the one before must pin nothing. torch rounds pinned memory up to a power of two,
and never frees it; so chunks are powers of two, and are divided here in units of pages.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from fxoffload.inflight import find_inflight_cap
from fxoffload.runtime.devices.buffers import STAGING_ALIGNMENT, StagingBuffer
from fxoffload.runtime.engines.slots import SlotAllocator
from fxoffload.sizes import UNLIMITED_BYTES, format_bytes

CHUNK_BYTES = 64 * 2**20
MOST_CUTS = 1024  # Buffers of one chunk that are kept.

AllocateFunction = Callable[[int, bool], torch.Tensor]


@dataclass(slots=True, eq=False)
class _Chunk:
    memory: StagingBuffer
    slots: SlotAllocator
    # By offset and size: equal steps cut equal buffers, and to cut a tensor takes microseconds.
    buffers: dict[tuple[int, int], StagingBuffer] = field(
        default_factory=dict[tuple[int, int], StagingBuffer]
    )

    @property
    def nbytes(self) -> int:
        return len(self.memory.view)


class StagingArena:
    """Pinned memory for a host tier and for what is in flight; buffers beyond it are pageable.

    Copies of pageable memory are slower and block the caller. But no value is refused, and none
    waits until another one is freed, which may be late: a value whose write failed keeps its buffer
    as long as it lives. host_bytes: of the host tier. max_inflight_bytes: see find_inflight_cap, by
    the largest buffer so far. allocate(nbytes, pinned): returns host memory as a uint8 tensor; if
    it raises RuntimeError for pinned memory (a limit on locked memory of a container or of WSL),
    that much is not requested again, and a warning says so once. pageable_bytes: bytes of the
    buffers that were not pinned. A finalizer must not call the arena, as it has a lock.
    """

    def __init__(
        self, allocate: AllocateFunction, host_bytes: int, max_inflight_bytes: int | None
    ) -> None:
        self._allocate = allocate
        self._host_bytes = host_bytes
        self._max_inflight_bytes = max_inflight_bytes
        self._largest_bytes = 0
        self._available_bytes = UNLIMITED_BYTES  # What the system pins.
        self._lock = threading.Lock()
        self._chunks: list[_Chunk] = []
        self._places: dict[StagingBuffer, tuple[_Chunk, int]] = {}
        self.pageable_bytes = 0
        self._refusal: str | None = None

    @property
    def pinned_bytes(self) -> int:
        """The bytes of all chunks, used or not."""
        return sum(chunk.nbytes for chunk in self._chunks)

    @property
    def used_bytes(self) -> int:
        """The bytes of the chunks that are in use by buffers."""
        return sum(chunk.slots.allocated_bytes for chunk in self._chunks)

    def take(self, nbytes: int) -> StagingBuffer:
        """A buffer of at least `nbytes`, aligned to STAGING_ALIGNMENT."""
        with self._lock:
            self._largest_bytes = max(self._largest_bytes, nbytes)
            for chunk in self._chunks:
                buffer = self._cut(chunk, nbytes)
                if buffer is not None:
                    return buffer
            chunk = self._grow(nbytes)
            if chunk is not None:
                buffer = self._cut(chunk, nbytes)
                assert buffer is not None
                return buffer
            self.pageable_bytes += nbytes
            self._warn_once()
        return self._make(nbytes, pinned=False)

    def give(self, buffer: StagingBuffer) -> None:
        """Take `buffer` back for reuse; the caller may not use it after this."""
        with self._lock:
            place = self._places.pop(buffer, None)
            if place is not None:
                chunk, offset = place
                chunk.slots.free(offset)

    def _cut(self, chunk: _Chunk, nbytes: int) -> StagingBuffer | None:
        slots = chunk.slots
        offset = slots.allocate(nbytes)
        if slots.end_bytes > chunk.nbytes:
            slots.free(offset)
            return None
        buffer = chunk.buffers.get((offset, nbytes))
        if buffer is None:
            if len(chunk.buffers) >= MOST_CUTS:
                chunk.buffers.clear()
            memory = chunk.memory
            view = memory.view[offset : offset + nbytes]
            buffer = StagingBuffer(memory.tensor.narrow(0, offset, nbytes), view)
            chunk.buffers[offset, nbytes] = buffer
        self._places[buffer] = chunk, offset
        return buffer

    def _grow(self, nbytes: int) -> _Chunk | None:
        cap_bytes = find_inflight_cap(self._max_inflight_bytes, self._largest_bytes)
        limit_bytes = min(self._host_bytes + cap_bytes, self._available_bytes)
        room = limit_bytes - self.pinned_bytes
        least = 1 << (max(nbytes, STAGING_ALIGNMENT) - 1).bit_length()
        # Few large chunks are better than many small ones: the rest at the end of each is wasted.
        size = max(least, CHUNK_BYTES, 1 << max(0, (self.pinned_bytes // 4).bit_length() - 1))
        while size > room and size > least:
            size //= 2
        if size > room:
            return None
        try:
            memory = self._make(size, pinned=True)
        except RuntimeError as error:
            self._refusal = f"{format_bytes(size)} more were refused: {str(error).splitlines()[0]}"
            # Smaller chunks may still be available; this size is not requested again.
            self._available_bytes = self.pinned_bytes + (size // 2 if size > least else 0)
            return self._grow(nbytes)
        chunk = _Chunk(memory, SlotAllocator(STAGING_ALIGNMENT))
        self._chunks.append(chunk)
        return chunk

    def _warn_once(self) -> None:
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            warnings.warn(
                f"{format_bytes(self.pinned_bytes)} of host memory are pinned, and {refusal}. "
                "Values that find no room there go through pageable memory, which is slower "
                "(pageable_bytes in statistics()); raise the limit on locked memory (ulimit -l, "
                "or --ulimit memlock=-1 of a container), or lower host_budget",
                RuntimeWarning,
                stacklevel=3,
            )

    def _make(self, nbytes: int, *, pinned: bool) -> StagingBuffer:
        memory = self._allocate(nbytes, pinned)
        if memory.data_ptr() % STAGING_ALIGNMENT:  # It is 0 if the driver pins whole pages.
            memory = self._allocate(nbytes + STAGING_ALIGNMENT, pinned)
            memory = memory.narrow(0, -memory.data_ptr() % STAGING_ALIGNMENT, nbytes)
        return StagingBuffer(memory, memory.numpy().data)
