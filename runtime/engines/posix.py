"""The engine for ordinary disks: worker threads with one pwrite or pread for each transfer."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from fxoffload.runtime.engines.spill_file import SpillFile
from fxoffload.runtime.engines.striping import StripedEngine
from fxoffload.runtime.engines.workers import Transfer, Workers

# The number of threads for each direction of each file, so that reads never queue behind writes,
# nor one drive behind another.
WORKERS = 2


class PosixEngine(StripedEngine):
    """Moves bytes by direct I/O, without a copy, where the file systems support it."""

    def __init__(
        self, spill_files: Sequence[SpillFile], *, bytes_per_second: Sequence[float] = ()
    ) -> None:
        super().__init__(
            spill_files,
            library="posix",
            alignment=max(file.alignment for file in spill_files),
            bytes_per_second=bytes_per_second,
        )
        self._fds = tuple(file.fd for file in spill_files)
        self._writers = tuple(Workers(WORKERS, "fxoffload-write") for _ in self._fds)
        self._readers = tuple(Workers(WORKERS, "fxoffload-read") for _ in self._fds)

    def close(self) -> None:
        """Finish the transfers, then close the files."""
        for workers in (*self._writers, *self._readers):
            workers.shutdown()
        super().close()

    def _start(
        self, index: int, view: memoryview, position: int, *, write: bool
    ) -> Transfer[memoryview]:
        workers = (self._writers if write else self._readers)[index]
        call, short = (os.pwrite, "short write") if write else (_pread_into, "short read")
        fd, alignment = self._fds[index], self.alignment
        return workers.submit(
            lambda whole: _transfer(call, fd, whole, position, alignment, short), view
        )


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
    """Move all of `view` and return its length; raise OSError if a call moves nothing.

    A call moves at most 2 GiB and may stop earlier. Direct I/O can resume only at a multiple of the
    alignment, so the bytes after the last multiple are moved again.
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
