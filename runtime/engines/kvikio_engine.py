"""The engine on KvikIO: C++ threads start and move bytes without the interpreter lock.

KvikIO has one thread pool with one queue for the whole process. So each direction of each file has
a lane, which gives KvikIO only a few tasks at a time, and the pool has enough threads for the tasks
of all lanes. Reads then never queue behind writes, nor one drive behind another, and a transfer
that KvikIO does not have yet can be cancelled. KvikIO moves host memory by POSIX calls, also where
it has GPUDirect Storage, which is for device memory only (gds_engine).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import importlib.util
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from fxoffload.runtime.engines.future import ViewFuture
from fxoffload.runtime.engines.ioengine import IOFuture
from fxoffload.runtime.engines.spill_file import SpillFile
from fxoffload.runtime.engines.striping import StripedEngine

# One task is one system call. At 16 MiB the cost of the call is negligible beside the copying of
# pages (tasks of 4 MiB took a third more CPU time per GiB), and a large tensor still has several
# calls in flight.
TASK_BYTES = 16 * 2**20
TRANSFER_TASKS = 4
# The tasks of two large transfers: the drive works on the second while Python handles the end of
# the first, which a running compiled kernel can delay.
LANE_TASKS = 2 * TRANSFER_TASKS
DRIVER_LIBRARY = "libcuda.so.1"


class Obstacle(NamedTuple):
    """The reason why KvikIO cannot be used here, and the remedy."""

    fact: str
    remedy: str


def find_obstacle() -> Obstacle | None:
    """The reason why this process cannot use KvikIO; None if it can."""
    if importlib.util.find_spec("kvikio") is None:
        return Obstacle(
            "the package kvikio is not installed",
            'pip install "fxoffload[kvikio]" for CUDA 13, "fxoffload[kvikio-cu12]" for CUDA 12',
        )
    try:
        # KvikIO needs the driver: it asks it for every address whether it is host memory.
        ctypes.CDLL(DRIVER_LIBRARY)
    except OSError:
        return Obstacle(f"no CUDA driver ({DRIVER_LIBRARY})", "install the NVIDIA driver")
    try:
        importlib.import_module("kvikio.cufile_driver")
    except (ImportError, OSError) as error:
        return Obstacle(f"importing kvikio fails ({error})", "install kvikio again")
    return None


class KvikioEngine(StripedEngine):
    """Moves bytes by KvikIO; `find_obstacle` must have returned None.

    Raises OSError if KvikIO cannot open a file. KvikIO's settings belong to the whole process: this
    engine changes only the number of threads, and only to raise it to what its lanes need.
    """

    def __init__(
        self, spill_files: Sequence[SpillFile], *, bytes_per_second: Sequence[float] = ()
    ) -> None:
        alignment = max(file.alignment for file in spill_files)
        if alignment > 1:
            # KvikIO copies what is not aligned to a page, or moves it through the page cache.
            alignment = max(alignment, mmap.PAGESIZE)
        super().__init__(
            spill_files, library="kvikio", alignment=alignment, bytes_per_second=bytes_per_second
        )
        self._handles: list[Any] = []
        try:
            for file in spill_files:
                self._handles.append(_open_handle(file))
        except BaseException:
            self._close_handles()
            raise
        self._writers = tuple(Lane(handle.pwrite, "write") for handle in self._handles)
        self._readers = tuple(Lane(handle.pread, "read") for handle in self._handles)
        _raise_threads(LANE_TASKS * 2 * len(self._handles))

    def close(self) -> None:
        """Finish the transfers, then close the files."""
        for lane in (*self._writers, *self._readers):
            lane.close()
        self._close_handles()
        super().close()

    def abandon(self) -> None:
        """In a forked child: drop the files, without a call of the library."""
        null = os.open(os.devnull, os.O_RDWR)
        for handle in self._handles:
            # The library owns the descriptors, and closes them when the handles are freed.
            os.dup2(null, handle.fileno(), inheritable=False)
        os.close(null)
        super().abandon()

    def _start(self, index: int, view: memoryview, position: int, *, write: bool) -> IOFuture:
        lane = (self._writers if write else self._readers)[index]
        return lane.submit(view, position)

    def _close_handles(self) -> None:
        for handle in self._handles:
            handle.close()


class _Transfer(ViewFuture[memoryview]):
    """One transfer in a lane; it references the memory until it has ended."""

    __slots__ = ("handle", "nbytes", "position", "task_bytes", "tasks", "view")

    def __init__(self, view: memoryview, position: int) -> None:
        super().__init__(view)
        self.view: memoryview | None = None  # Once the transfer has started.
        self.nbytes = view.nbytes
        self.position = position
        self.tasks = max(1, min(TRANSFER_TASKS, -(-self.nbytes // TASK_BYTES)))
        self.task_bytes = max(1, -(-self.nbytes // (self.tasks * mmap.PAGESIZE))) * mmap.PAGESIZE
        self.handle: Any = None  # KvikIO's future, once the transfer has started.

    def end(self, outcome: int | Exception | None) -> None:
        """Drop the memory, and end."""
        self.view = self.handle = None
        super().end(outcome)


class _Failed(NamedTuple):
    """Takes the place of KvikIO's future for a transfer that KvikIO refused to start."""

    error: Exception

    def get(self) -> int:
        raise self.error


class Lane:
    """The transfers of one file in one direction: up to LANE_TASKS in KvikIO, the rest queued here.

    A thread of the lane waits for KvikIO's futures in the order of their starts, completes our
    futures and starts the next transfers. No thread ever waits for a lane's lock: a finalizer that
    runs while the lock is held may wait for the store's lock, whose holder may be in this lane.
    """

    def __init__(self, call: Callable[..., Any], verb: str) -> None:
        self._call = call
        self._verb = verb
        self._queued: deque[_Transfer] = deque()
        self._started: deque[_Transfer] = deque()
        self._starting = threading.Lock()
        self._started_tasks = 0  # Changed under _starting.
        self._ended_tasks = 0  # Changed only by the lane's thread.
        self._waiter = ThreadPoolExecutor(1, f"fxoffload-kvikio-{verb}")

    def submit(self, view: memoryview, position: int) -> IOFuture:
        """Move all of `view` to or from `position`; the future raises every error as OSError."""
        transfer = _Transfer(view, position)
        self._queued.append(transfer)
        self._start_queued()
        return transfer

    def close(self) -> None:
        """Wait until all submitted transfers have ended."""
        self._waiter.shutdown()

    def _start_queued(self) -> None:
        # If the lock is taken, return: the holder checks the queue again after releasing it.
        while self._has_room() and self._starting.acquire(blocking=False):
            try:
                while self._has_room():
                    self._start(self._queued.popleft())
            finally:
                self._starting.release()

    def _has_room(self) -> bool:
        running = self._started_tasks - self._ended_tasks
        return bool(self._queued) and running <= LANE_TASKS - TRANSFER_TASKS

    def _start(self, transfer: _Transfer) -> None:
        transfer.view = transfer.take_view()
        if transfer.view is None:
            return  # It was cancelled.
        try:
            transfer.handle = self._call(
                transfer.view, transfer.nbytes, transfer.position, task_size=transfer.task_bytes
            )
        except Exception as error:
            # The lane's thread reports the error, as this thread may hold a lock that the callbacks
            # of the future need.
            transfer.handle = _Failed(error)
        self._started_tasks += transfer.tasks
        self._started.append(transfer)
        try:
            self._waiter.submit(self._finish_next)
        except RuntimeError:
            # The lane is being closed, or the interpreter ends: this is the lane's own thread.
            self._finish_next()

    def _finish_next(self) -> None:
        transfer = self._started.popleft()
        moved, error = 0, None
        try:
            moved = transfer.handle.get()
        except Exception as raised:
            error = as_os_error(raised)
        self._ended_tasks += transfer.tasks
        self._start_queued()
        if error is None and moved != transfer.nbytes:
            error = OSError(errno.EIO, f"short {self._verb}: {moved} of {transfer.nbytes} bytes")
        transfer.end(moved if error is None else error)


def _open_handle(file: SpillFile) -> Any:
    kvikio = importlib.import_module("kvikio")
    try:
        handle = kvikio.CuFile(f"/proc/self/fd/{file.fd}", "r+")
    except RuntimeError as error:
        raise as_os_error(error) from error
    if file.direct:
        # KvikIO reads through the page cache unless a process-wide setting forbids it. No one else
        # uses this descriptor, and all transfers of this engine are aligned, so O_DIRECT is safe.
        flags = fcntl.fcntl(handle.fileno(), fcntl.F_GETFL)
        fcntl.fcntl(handle.fileno(), fcntl.F_SETFL, flags | os.O_DIRECT)
    return handle


def _raise_threads(count: int) -> None:
    defaults = importlib.import_module("kvikio.defaults")
    if defaults.get("num_threads") < count:
        defaults.set("num_threads", count)


def as_os_error(error: Exception) -> OSError:
    """An error of KvikIO as an OSError.

    The text of KvikIO's error ends in that of the system's error, if there was one: it gives errno.
    """
    if isinstance(error, OSError):
        return error
    text = str(error)
    number = next((n for n in errno.errorcode if text.endswith(os.strerror(n))), errno.EIO)
    return OSError(number, f"{text} (kvikio)")
