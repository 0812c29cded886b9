"""Extents of a growing space of bytes: first fit, with freed neighbours joined (pure)."""

from __future__ import annotations

from bisect import bisect_left


class SlotAllocator:
    """Hands out aligned extents `[offset, offset + nbytes)` and takes them back.

    First fit at the lowest offset: equal steps ask for equal sizes, so they find the same holes
    and `end_bytes` stays where the first step left it. A free extent at the end is given up, so
    that `end_bytes` is 0 when nothing is allocated. Not thread-safe.
    """

    def __init__(self, alignment: int) -> None:
        assert alignment > 0
        self._alignment = alignment
        self._sizes: dict[int, int] = {}
        # Holes below end_bytes by ascending offset; no two of them touch.
        self._hole_offsets: list[int] = []
        self._hole_sizes: list[int] = []
        self.end_bytes = 0
        self.allocated_bytes = 0

    def allocate(self, nbytes: int) -> int:
        """The offset of an extent of at least `nbytes`; a zero-byte request takes one unit."""
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
        """Take back the extent at `offset`; it must be allocated."""
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
