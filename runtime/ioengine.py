"""The protocol between the store and what moves its bytes, and the choice of an engine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, Protocol

from fxoffload.config import OffloadConfig, check_directory
from fxoffload.errors import ConfigError
from fxoffload.runtime.memory import MemoryEngine
from fxoffload.runtime.posix import PosixEngine
from fxoffload.runtime.spill_file import SpillFile


class IOFuture(Protocol):
    """A transfer that was started; `concurrent.futures.Future[int]` is one."""

    def done(self) -> bool:
        """Whether the transfer ended: moved, failed or cancelled."""
        ...

    def result(self) -> int:
        """Wait; the bytes moved. Raises OSError, or CancelledError."""
        ...

    def cancel(self) -> bool:
        """True only if the transfer never started and now never will."""
        ...

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Call `fn(self)` at the end, in any thread; at once when that is past."""
        ...


class IOEngine(Protocol):
    """Slots for bytes, and asynchronous transfers to and from them.

    Addresses, offsets and lengths of a transfer are multiples of `alignment`. Memory under a
    view stays valid until its future is done. `allocate`, `free` and `reserve` take one caller at
    a time (the store calls them under its lock); `write` and `read` may be called by any thread.
    """

    @property
    def name(self) -> str:
        """Which path moves the bytes: "posix direct", "posix buffered" or "memory"."""
        ...

    @property
    def alignment(self) -> int:
        """What addresses, offsets and lengths are multiples of."""
        ...

    def allocate(self, nbytes: int) -> int:
        """The offset of a slot of `nbytes`; StoreFull when there is no room."""
        ...

    def free(self, offset: int) -> None:
        """Take back the slot at `offset`; no transfer of it may be in flight."""
        ...

    def reserve(self, nbytes: int) -> None:
        """Make sure that `nbytes` in all can be held; StoreFull otherwise."""
        ...

    def describe(self, offset: int) -> str:
        """Where `offset` lies, for messages."""
        ...

    def write(self, view: memoryview, offset: int) -> IOFuture:
        """Start to write `view` to the slot at `offset`."""
        ...

    def read(self, view: memoryview, offset: int) -> IOFuture:
        """Start to fill `view` from the slot at `offset`."""
        ...

    def close(self) -> None:
        """Finish what was started and give everything back; a second call does nothing."""
        ...


def find_outcome(future: IOFuture) -> int | OSError | None:
    """Wait for `future`: the bytes moved, the error, or None when it was cancelled."""
    try:
        return future.result()
    except OSError as error:
        return error
    except CancelledError:
        return None


def open_engine(config: OffloadConfig) -> IOEngine:
    """Open the engine that stands for the disk tier under `config`.

    Raises ConfigError for a directory that cannot hold a spill file, or an engine that this
    version does not have.
    """
    if config.ioengine == "memory":
        return MemoryEngine(config.host_bytes)
    if config.ioengine == "kvikio":
        raise ConfigError(
            'ioengine="kvikio": this version has no kvikio engine; pass "posix" or "auto"'
        )
    for directory in config.directories:
        check_directory(directory)
    files: list[SpillFile] = []
    try:
        for directory in config.directories:
            files.append(SpillFile(directory))  # noqa: PERF401 - the opened ones must be closed
    except BaseException:
        for file in files:
            file.close()
        raise
    return PosixEngine(files)
