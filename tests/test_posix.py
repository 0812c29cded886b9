"""The posix engine: striping, short transfers, errors, and what a cancelled transfer holds."""

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

from fxoffload.errors import StoreFull
from fxoffload.runtime import posix
from fxoffload.runtime.posix import PosixEngine
from fxoffload.runtime.spill_file import SpillFile

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


def test_bytes_come_back(engine: PosixEngine) -> None:
    views = [aligned(seed=i) for i in range(8)]
    offsets = [engine.allocate(NBYTES) for _ in views]
    writes = [engine.write(view, offset) for view, offset in zip(views, offsets, strict=True)]
    assert [write.result() for write in writes] == [NBYTES] * 8
    for view, offset in reversed(list(zip(views, offsets, strict=True))):
        back = aligned()
        assert engine.read(back, offset).result() == NBYTES
        assert back == view


def test_allocations_go_to_the_emptiest_file(tmp_path: Path) -> None:
    directories = [tmp_path / "a", tmp_path / "b"]
    for directory in directories:
        directory.mkdir()
    engine = PosixEngine([SpillFile(directory) for directory in directories])
    sizes = [3 * NBYTES, NBYTES, NBYTES, NBYTES, NBYTES]
    offsets = [engine.allocate(size) for size in sizes]
    assert len(set(offsets)) == 5
    places = [engine.describe(offset) for offset in offsets]
    assert [str(directories[0]) in place for place in places] == [True, False, False, False, True]
    assert engine.end_bytes == sum(sizes)
    views = [aligned(seed=i) for i in range(2)]
    for view, offset in zip(views, offsets[1:3], strict=True):
        engine.write(view, offset).result()
    back = aligned()
    engine.read(back, offsets[2]).result()
    assert back == views[1]
    for offset in offsets:
        engine.free(offset)
    assert engine.end_bytes == 0
    engine.close()


def test_a_full_file_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [SpillFile(tmp_path), SpillFile(tmp_path)]
    engine = PosixEngine(files)

    def full(end_bytes: int) -> None:
        raise StoreFull(f"no room for {end_bytes}")

    monkeypatch.setattr(files[0], "reserve", full)
    offsets = [engine.allocate(NBYTES) for _ in range(3)]
    assert engine.write(aligned(seed=1), offsets[2]).result() == NBYTES
    monkeypatch.setattr(files[1], "reserve", full)
    with pytest.raises(StoreFull, match="no room"):
        engine.allocate(NBYTES)
    assert engine.end_bytes == 3 * NBYTES
    engine.close()


def test_reserve_shares_the_space(tmp_path: Path) -> None:
    files = [SpillFile(tmp_path), SpillFile(tmp_path)]
    engine = PosixEngine(files)
    engine.reserve(100 * 2**20)
    assert [file.size_bytes for file in files] == [64 * 2**20] * 2
    with pytest.raises(StoreFull):
        engine.reserve(2**60)
    engine.close()


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
