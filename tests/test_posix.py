"""The posix engine: short transfers, errors, workers, and the memory of a cancelled transfer."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engine_contract import EngineContract

from fxoffload.runtime.engines import posix
from fxoffload.runtime.engines.posix import PosixEngine
from fxoffload.runtime.engines.spill_file import SpillFile

NBYTES = 64 * 1024


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[PosixEngine]:
    engine = PosixEngine([SpillFile(tmp_path)])
    yield engine
    engine.close()


def aligned(nbytes: int = NBYTES, seed: int | None = None) -> memoryview:
    view = memoryview(mmap.mmap(-1, nbytes))
    if seed is not None:
        view[:] = np.random.default_rng(seed).bytes(nbytes)
    return view


class TestContract(EngineContract):
    pass


def test_short_transfers_go_on_aligned(
    engine: PosixEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read = os.pwrite, os.preadv
    positions: list[int] = []

    def short_write(fd: int, view: memoryview, position: int) -> int:
        positions.append(position)
        part = min(len(view), 8192)
        moved = write(fd, view[:part], position)
        return moved if part == len(view) else moved - 100

    def short_read(fd: int, views: list[memoryview], position: int) -> int:
        positions.append(position)
        part = min(len(views[0]), 12288)
        moved = read(fd, [views[0][:part]], position)
        return moved if part == len(views[0]) else moved - 1

    monkeypatch.setattr(posix.os, "pwrite", short_write)
    monkeypatch.setattr(posix.os, "preadv", short_read)
    view, back = aligned(seed=3), aligned()
    offset = engine.allocate(NBYTES)
    assert engine.write(view, offset).result() == NBYTES
    assert engine.read(back, offset).result() == NBYTES
    assert back == view
    assert len(positions) > 10
    assert all(position % engine.alignment == 0 for position in positions)


def test_reading_behind_the_end_is_an_error(engine: PosixEngine) -> None:
    with pytest.raises(OSError, match="short read: 0 of 65536") as caught:
        engine.read(aligned(), 2**40).result()
    assert caught.value.errno == errno.EIO


def test_errors_come_out_of_the_future(engine: PosixEngine) -> None:
    unaligned = memoryview(bytearray(NBYTES + 1))[1:]
    if engine.alignment == 1:
        pytest.skip("the file system of tmp_path has no direct I/O")
    with pytest.raises(OSError, match="Invalid argument"):
        engine.write(unaligned, engine.allocate(NBYTES)).result()


def test_a_cancelled_transfer_lets_go_of_its_memory(
    engine: PosixEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    write = os.pwrite

    def gated(fd: int, view: memoryview, position: int) -> int:
        assert gate.wait(30)
        return write(fd, view, position)

    monkeypatch.setattr(posix.os, "pwrite", gated)
    offset = engine.allocate(NBYTES)
    busy = [engine.write(aligned(), offset) for _ in range(posix.WORKERS)]
    array = np.zeros(NBYTES, np.uint8)
    died = weakref.ref(array)
    queued = engine.write(memoryview(array), offset)
    del array
    assert died() is not None
    assert queued.cancel()
    assert died() is None
    gate.set()
    assert [future.result() for future in busy] == [NBYTES] * posix.WORKERS


def test_a_wrong_descriptor_is_an_error(engine: PosixEngine, tmp_path: Path) -> None:
    offset = engine.allocate(NBYTES)
    writable, readable = (os.open(tmp_path / "other", flags | os.O_CREAT) for flags in (1, 0))
    os.dup2(readable, engine._fds[0])
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        engine.write(aligned(), offset).result()
    assert caught.value.errno == errno.EBADF
    os.dup2(writable, engine._fds[0])
    with pytest.raises(OSError, match="Bad file descriptor"):
        engine.read(aligned(), offset).result()
    os.close(readable)
    os.close(writable)


def test_a_stalled_file_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PosixEngine([SpillFile(tmp_path), SpillFile(tmp_path)])
    stalled_fd, gate = engine._fds[0], threading.Event()
    write = os.pwrite

    def stall(fd: int, view: memoryview, position: int) -> int:
        assert fd != stalled_fd or gate.wait(30)
        return write(fd, view, position)

    monkeypatch.setattr(posix.os, "pwrite", stall)
    first, second = engine.allocate(NBYTES), engine.allocate(NBYTES)
    stalled = [engine.write(aligned(), first) for _ in range(4 * posix.WORKERS)]
    for _ in range(10):  # While those wait, all that is new goes to the other file and ends.
        offset = engine.allocate(NBYTES)
        assert engine.write(aligned(), offset).result(30) == NBYTES
        assert offset >> 48 == second >> 48
    assert engine.read(aligned(), first).result(30) == NBYTES
    assert not any(future.done() for future in stalled)
    gate.set()
    engine.close()
    assert [future.result() for future in stalled] == [NBYTES] * len(stalled)


def test_threads_are_named_and_end_with_close(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    others = set(threading.enumerate())
    engine = PosixEngine([SpillFile(tmp_path)])
    offset = engine.allocate(NBYTES)
    engine.write(aligned(), offset).result()
    engine.read(aligned(), offset).result()
    ours = set(threading.enumerate()) - others
    names = {thread.name.rpartition("_")[0] for thread in ours}
    assert names == {"fxoffload-write", "fxoffload-read"}
    engine.close()
    engine.close()
    assert not any(thread.is_alive() for thread in ours)
    assert set(os.listdir("/proc/self/fd")) == before
