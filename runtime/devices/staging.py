"""Staging buffers cut from chunks of pinned memory: bounded, and never given back.

Pinning costs milliseconds for each call and stops the device, so a step that asks for what the
step before asked for must pin nothing. torch rounds what it pins up to a power of two and keeps
it for good; so chunks are powers of two, and cut here in pages.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fxoffload.runtime.devices.buffers import STAGING_ALIGNMENT, StagingBuffer
from fxoffload.runtime.engines.slots import SlotAllocator
from fxoffload.sizes import format_bytes

CHUNK_BYTES = 64 * 2**20

AllocateFunction = Callable[[int, bool], torch.Tensor]


@dataclass(slots=True, eq=False)
class _Chunk:
    memory: StagingBuffer
    slots: SlotAllocator

    @property
    def nbytes(self) -> int:
        return len(self.memory.view)


class StagingArena:
    """At most `max_bytes` of pinned memory; what finds no room there is pageable memory.

    Pageable copies are slower and hold the caller up, but a value is never refused and nothing
    waits for another value's end: writes that failed keep their buffers as long as they live.
    `allocate(nbytes, pinned)` gives host memory as bytes. Where it raises RuntimeError for pinned
    memory (a container's or WSL's limit on locked memory), no more is asked for; that is said once.
    pageable_bytes: of the buffers that were not pinned. Not to be called from a finalizer.
    """

    def __init__(self, allocate: AllocateFunction, max_bytes: int) -> None:
        self._allocate = allocate
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._chunks: list[_Chunk] = []
        self._places: dict[StagingBuffer, tuple[_Chunk, int]] = {}
        self.pageable_bytes = 0
        self._refusal: str | None = None

    @property
    def pinned_bytes(self) -> int:
        """The bytes of all chunks."""
        return sum(chunk.nbytes for chunk in self._chunks)

    @property
    def used_bytes(self) -> int:
        """The bytes of the chunks that buffers hold now."""
        return sum(chunk.slots.allocated_bytes for chunk in self._chunks)

    def take(self, nbytes: int) -> StagingBuffer:
        """A buffer of at least `nbytes`, aligned to STAGING_ALIGNMENT."""
        with self._lock:
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
        """Take `buffer` back; nothing may read or write it any more."""
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
        memory = chunk.memory
        view = memory.view[offset : offset + nbytes]
        buffer = StagingBuffer(memory.tensor.narrow(0, offset, nbytes), view)
        self._places[buffer] = chunk, offset
        return buffer

    def _grow(self, nbytes: int) -> _Chunk | None:
        room = self._max_bytes - self.pinned_bytes
        least = 1 << (max(nbytes, STAGING_ALIGNMENT) - 1).bit_length()
        # Few large chunks: what is left over at their ends is lost.
        size = max(least, CHUNK_BYTES, 1 << max(0, (self.pinned_bytes // 4).bit_length() - 1))
        while size > room and size > least:
            size //= 2
        if size > room:
            return None
        try:
            memory = self._make(size, pinned=True)
        except RuntimeError as error:
            self._refusal = f"{format_bytes(size)} more were refused: {str(error).splitlines()[0]}"
            # Smaller chunks may still be had; none of this size is asked for again.
            self._max_bytes = self.pinned_bytes + (size // 2 if size > least else 0)
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
        if memory.data_ptr() % STAGING_ALIGNMENT:  # Not so where the driver pins whole pages.
            memory = self._allocate(nbytes + STAGING_ALIGNMENT, pinned)
            memory = memory.narrow(0, -memory.data_ptr() % STAGING_ALIGNMENT, nbytes)
        return StagingBuffer(memory, memory.numpy().data)
