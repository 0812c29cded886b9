"""The engine for ordinary disks: worker threads with one pwrite or pread for each transfer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from fxoffload.errors import StoreFull
from fxoffload.runtime.slots import SlotAllocator
from fxoffload.runtime.spill_file import SpillFile

WORKERS = 2
# An offset names its file in the bits above these: 256 TiB are enough for one file.
_POSITION_BITS = 48
_POSITION_MASK = (1 << _POSITION_BITS) - 1


class PosixEngine:
    """Values striped over spill files: each goes, whole, to the file with the least in it.

    Writes and reads have their own threads, so that a read never queues behind writes. The
    engine owns the files: close() closes them.
    """

    def __init__(self, spill_files: Sequence[SpillFile]) -> None:
        assert spill_files
        self._files = tuple(spill_files)
        self.alignment = max(file.alignment for file in self._files)
        direct = all(file.direct for file in self._files)
        self.name = "posix direct" if direct else "posix buffered"
        self._slots = tuple(SlotAllocator(max(self.alignment, 512)) for _ in self._files)
        self._writers = ThreadPoolExecutor(WORKERS, "fxoffload-write")
        self._readers = ThreadPoolExecutor(WORKERS, "fxoffload-read")

    @property
    def end_bytes(self) -> int:
        """The bytes of all files up to the last slot in each."""
        return sum(slots.end_bytes for slots in self._slots)

    def allocate(self, nbytes: int) -> int:
        """The offset of a slot of `nbytes`; StoreFull when no file can hold it."""
        order = sorted(range(len(self._files)), key=lambda i: self._slots[i].allocated_bytes)
        full: StoreFull | None = None
        for index in order:
            slots = self._slots[index]
            position = slots.allocate(nbytes)
            try:
                self._files[index].reserve(slots.end_bytes)
            except BaseException as error:
                slots.free(position)
                if not isinstance(error, StoreFull):
                    raise
                full = error
                continue
            return index << _POSITION_BITS | position
        assert full is not None
        raise full

    def free(self, offset: int) -> None:
        """Take back the slot at `offset`."""
        self._slots[offset >> _POSITION_BITS].free(offset & _POSITION_MASK)

    def reserve(self, nbytes: int) -> None:
        """Preallocate room for `nbytes` in all; StoreFull when there is not enough."""
        share = -(-nbytes // len(self._files))
        for file in self._files:
            file.reserve(-(-share // 4096) * 4096)

    def describe(self, offset: int) -> str:
        """Where `offset` lies, for messages."""
        file = self._files[offset >> _POSITION_BITS]
        return f"the spill file in {file.directory} at {offset & _POSITION_MASK} ({self.name})"

    def write(self, view: memoryview, offset: int) -> Future[int]:
        """Start to write `view` at `offset`."""
        return self._submit(self._writers, os.pwrite, view, offset, "short write")

    def read(self, view: memoryview, offset: int) -> Future[int]:
        """Start to fill `view` from `offset`."""
        return self._submit(self._readers, _pread_into, view, offset, "short read")

    def close(self) -> None:
        """Finish what was started, then close the files."""
        self._writers.shutdown()
        self._readers.shutdown()
        for file in self._files:
            file.close()

    def _submit(
        self,
        executor: ThreadPoolExecutor,
        call: Callable[[int, memoryview, int], int],
        view: memoryview,
        offset: int,
        short: str,
    ) -> Future[int]:
        fd = self._files[offset >> _POSITION_BITS].fd
        position = offset & _POSITION_MASK
        return submit_transfer(
            executor,
            lambda whole: _transfer(call, fd, whole, position, self.alignment, short),
            view,
        )


def submit_transfer(
    executor: ThreadPoolExecutor, move: Callable[[memoryview], int], view: memoryview
) -> Future[int]:
    """Run `move(view)` in `executor`, and let go of `view` as soon as that is done or cancelled.

    An executor keeps the arguments of a cancelled call until a worker comes across it, which
    would keep the tensor's memory alive behind every queued transfer.
    """
    held = [view]

    def run() -> int:
        return move(held[0])

    def drop(_: Future[Any]) -> None:
        held.clear()

    future = executor.submit(run)
    future.add_done_callback(drop)
    return future


def _pread_into(fd: int, view: memoryview, position: int) -> int:
    return os.preadv(fd, [view], position)


def _transfer(
    call: Callable[[int, memoryview, int], int],
    fd: int,
    view: memoryview,
    position: int,
    alignment: int,
    short: str,
) -> int:
    """Move all of `view` and return its length; raise OSError where no byte moves any more.

    The kernel moves at most 2 GiB in a call and may stop earlier; direct I/O can only resume at
    a multiple of the alignment, so the bytes after the last one go again.
    """
    nbytes = len(view)
    done = 0
    while done < nbytes:
        moved = call(fd, view[done:], position + done)
        if done + moved < nbytes:
            moved -= moved % alignment
        if moved <= 0:
            raise OSError(errno.EIO, f"{short}: {done} of {nbytes} bytes")
        done += moved
    return done
