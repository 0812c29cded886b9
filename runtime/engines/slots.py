"""Allocate extents of a growing space of bytes: first fit, merging freed neighbours."""

from __future__ import annotations

from bisect import bisect_left


class SlotAllocator:
    """Allocates and frees aligned extents `[offset, offset + nbytes)` of a space without data.

    First fit at the lowest offset: equal steps request equal sizes, so they find the same holes,
    and `end_bytes` does not grow after the first step. A free extent at the end lowers `end_bytes`,
    so it is 0 if nothing is allocated. Not thread-safe.
    """

    def __init__(self, alignment: int) -> None:
        assert alignment > 0
        self._alignment = alignment
        self._sizes: dict[int, int] = {}
        # The holes below end_bytes, by ascending offset; no two are adjacent.
        self._hole_offsets: list[int] = []
        self._hole_sizes: list[int] = []
        self.end_bytes = 0
        self.allocated_bytes = 0

    def allocate(self, nbytes: int) -> int:
        """The offset of a new extent of at least `nbytes`; a request of 0 bytes takes one unit."""
        assert nbytes >= 0
        size = max(1, -(-nbytes // self._alignment)) * self._alignment
        offset = self._take_hole(size)
        if offset is None:
            offset = self.end_bytes
            self.end_bytes += size
        self._sizes[offset] = size
        self.allocated_bytes += size
        return offset

    def free(self, offset: int) -> None:
        """Free the extent at `offset`, which must be allocated."""
        size = self._sizes.pop(offset)
        self.allocated_bytes -= size
        index = bisect_left(self._hole_offsets, offset)
        if index < len(self._hole_offsets) and self._hole_offsets[index] == offset + size:
            del self._hole_offsets[index]
            size += self._hole_sizes.pop(index)
        if index > 0 and self._hole_offsets[index - 1] + self._hole_sizes[index - 1] == offset:
            index -= 1
            offset = self._hole_offsets.pop(index)
            size += self._hole_sizes.pop(index)
        if offset + size == self.end_bytes:
            self.end_bytes = offset
            return
        self._hole_offsets.insert(index, offset)
        self._hole_sizes.insert(index, size)

    def _take_hole(self, size: int) -> int | None:
        for index, hole in enumerate(self._hole_sizes):
            if hole < size:
                continue
            offset = self._hole_offsets[index]
            if hole == size:
                del self._hole_offsets[index], self._hole_sizes[index]
            else:
                self._hole_offsets[index] += size
                self._hole_sizes[index] -= size
            return offset
        return None
