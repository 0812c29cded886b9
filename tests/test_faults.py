"""Faults of the drive while a model trains: no value is lost, or an error names the lost one.

The faults are injected into the system calls of the posix engine; all code above them is real.
"""

from __future__ import annotations

import errno
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from job import VALUE_BYTES, WIDTH, Job, open_job

import fxoffload
from fxoffload.runtime.engines.checksum import CheckedEngine


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    with open_job(tmp_path_factory.mktemp("faults")) as job:
        yield job


@pytest.fixture(autouse=True)
def warn_again(job: Job) -> None:
    job.store._ledger._warned = False


class Faulty:
    """Replaces a system call; its `index`-th call fails."""

    def __init__(self, call: Callable[..., int], index: int, fault: Callable[..., int]) -> None:
        self._call = call
        self._index = index
        self._fault = fault
        self._lock = threading.Lock()
        self.calls = 0

    def __call__(self, *args: Any) -> int:
        with self._lock:
            index, self.calls = self.calls, self.calls + 1
        if index == self._index or self._index < 0:
            return self._fault(self._call, *args)
        return self._call(*args)


def step_with(
    job: Job, monkeypatch: pytest.MonkeyPatch, name: str, index: int, fault: Callable[..., int]
) -> tuple[fxoffload.StoreStatistics, int]:
    """Run a step whose `index`-th call of os.`name` fails; return also the number of calls."""
    faulty = Faulty(getattr(os, name), index, fault)
    with monkeypatch.context() as patch:
        patch.setattr(os, name, faulty)
        return job.step(), faulty.calls


def fail(number: int) -> Callable[..., int]:
    def fault(call: Callable[..., int], *args: Any) -> int:
        raise OSError(number, os.strerror(number))

    return fault


def move_nothing(call: Callable[..., int], *args: Any) -> int:
    return 0


def stall(call: Callable[..., int], *args: Any) -> int:
    time.sleep(0.2)
    return call(*args)


def find_half(view: memoryview) -> int:
    """Half of its bytes, as direct I/O can have them."""
    return len(view) // 2 // 4096 * 4096


def write_half(call: Callable[..., int], fd: int, view: memoryview, position: int) -> int:
    return call(fd, view[: find_half(view)], position)


def read_half(call: Callable[..., int], fd: int, views: list[memoryview], position: int) -> int:
    return call(fd, [views[0][: find_half(views[0])]], position)


@pytest.mark.parametrize(
    "fault",
    [fail(errno.ENOSPC), fail(errno.EDQUOT), fail(errno.EIO), move_nothing],
    ids=["ENOSPC", "EDQUOT", "EIO", "nothing"],
)
def test_each_write_in_turn_fails(
    job: Job, fault: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(job.calls):
        job.store._ledger._warned = False
        with pytest.warns(RuntimeWarning) as caught:
            done, calls = step_with(job, monkeypatch, "pwrite", index, fault)
        assert calls == job.calls
        (warning,) = caught
        assert "could not be offloaded" in str(warning.message)
        assert "nothing is lost" in str(warning.message)
        assert done.write_errors == 1
        kept_bytes = done.offloaded_bytes - done.written_bytes
        assert 0 < kept_bytes < done.offloaded_bytes
        assert done.forwarded_bytes == kept_bytes
        assert done.read_bytes == done.written_bytes
        assert (done.live_bytes, done.inflight_bytes) == (0, 0)


@pytest.mark.parametrize("fault", [stall, write_half], ids=["stall", "half"])
def test_each_write_in_turn_takes_longer(
    job: Job, fault: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(job.calls):
        done, calls = step_with(job, monkeypatch, "pwrite", index, fault)
        assert calls == job.calls + (fault is write_half)
        assert done.write_errors == 0
        assert done.offloaded_bytes == done.written_bytes == done.read_bytes


@pytest.mark.parametrize(
    ("fault", "errors"),
    [(fail(errno.EIO), 1), (move_nothing, 1), (stall, 0), (read_half, 0)],
    ids=["EIO", "nothing", "stall", "half"],
)
def test_each_read_in_turn_fails_once(
    job: Job, fault: Callable[..., int], errors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(job.calls):
        done, calls = step_with(job, monkeypatch, "preadv", index, fault)
        assert calls == job.calls + (fault is not stall)
        assert done.read_errors == errors
        assert done.offloaded_bytes == done.written_bytes == done.read_bytes
        assert (done.live_bytes, done.inflight_bytes) == (0, 0)


def test_a_read_that_fails_for_good_is_an_error_in_the_backward(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = job.begin()
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", Faulty(os.preadv, -1, fail(errno.EIO)))
        with pytest.raises(fxoffload.TransferError) as caught:
            loss.backward()
    message = str(caught.value)
    for part in ("Input/output error", "twice", "bytes", "spill file", "posix direct"):
        assert part in message
    del loss, caught
    gc.collect()
    assert fxoffload.statistics().read_errors >= 2
    done = job.step()  # The process goes on.
    assert done.offloaded_bytes == done.written_bytes == done.read_bytes
    assert (done.live_bytes, done.inflight_bytes) == (0, 0)


def test_a_drive_that_takes_nothing_any_more(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", Faulty(os.pwrite, -1, fail(errno.EROFS)))
        with pytest.warns(RuntimeWarning, match="Read-only file system") as caught:
            steps = [job.step() for _ in range(3)]
    assert len(caught) == 1
    for done in steps:
        assert done.written_bytes == done.read_bytes == 0
        assert done.write_errors == done.offloads == job.calls
        assert done.forwarded_bytes == done.offloaded_bytes
    assert job.step().written_bytes > 0  # A warning would be an error here.


def test_a_slow_drive_is_waited_for_and_memory_stays_in_bounds(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values below 64 KiB are copied, so the forward waits only for the cap."""
    value_bytes = 32 * 2**10
    cap, delay = 2 * value_bytes, 0.05
    bytes_per_second = value_bytes / delay

    def write(call: Callable[..., int], fd: int, view: memoryview, position: int) -> int:
        time.sleep(len(view) / bytes_per_second)
        return call(fd, view, position)

    def read(call: Callable[..., int], fd: int, views: list[memoryview], position: int) -> int:
        time.sleep(len(views[0]) / bytes_per_second)
        return call(fd, views, position)

    with open_job(spill_directory, batch=value_bytes // WIDTH // 4, max_inflight_bytes=cap) as job:
        monkeypatch.setattr(os, "pwrite", Faulty(os.pwrite, -1, write))
        monkeypatch.setattr(os, "preadv", Faulty(os.preadv, -1, read))
        fxoffload.reset_statistics()
        start = time.perf_counter()
        loss = job.forward()
        forward_seconds = time.perf_counter() - start
        # Two values are written at a time; all others waited for one of them, which had begun. On
        # a busy machine the forward takes some of that time itself.
        assert forward_seconds >= (job.calls - 2) // 2 * delay
        waited_seconds = fxoffload.statistics().exposed_seconds
        assert waited_seconds > 0
        start = time.perf_counter()
        loss.backward()
        backward_seconds = time.perf_counter() - start
        job.check_gradients()
        gc.collect()
        done = fxoffload.statistics()
    assert done.offloaded_bytes == job.calls * value_bytes
    assert value_bytes < done.peak_inflight_bytes <= cap
    # Two are read at a time, and next to nothing is computed meanwhile.
    exposed_seconds = done.exposed_seconds - waited_seconds
    assert (job.calls // 2) * delay / 2 <= exposed_seconds <= backward_seconds
    assert done.offloaded_bytes == done.written_bytes == done.read_bytes
    assert done.live_bytes == 0


def test_a_quota_that_is_used_up_when_the_spill_file_grows(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second forward before the backward needs more than the space of one step."""

    def refuse(*_: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    (stripe,) = job.store.engines["nvme"].inner._stripes
    file = stripe.file
    size_bytes = file.size_bytes
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.warns(RuntimeWarning) as caught:
        job.overfill()
    assert os.fstat(file.fd).st_size == file.size_bytes == size_bytes
    (warning,) = caught
    assert "the spill file needs" in str(warning.message)
    gc.collect()
    done = fxoffload.statistics()
    assert done.forwarded_bytes == done.offloaded_bytes - done.written_bytes > 0
    assert done.read_bytes == done.written_bytes > 0
    assert (done.read_errors, done.live_bytes, done.inflight_bytes) == (0, 0, 0)


def test_a_bit_that_flips_on_disk_is_named(spill_directory: Path) -> None:
    with open_job(spill_directory, checksum=True) as job:
        loss = job.begin()
        engine = job.store.engines["nvme"].inner
        assert isinstance(engine, CheckedEngine)
        (fd,) = engine._inner._fds
        with open(f"/proc/self/fd/{fd}", "r+b", buffering=0) as disk:
            disk.seek(VALUE_BYTES // 2)
            (byte,) = disk.read(1)
            disk.seek(VALUE_BYTES // 2)
            disk.write(bytes([byte ^ 1]))
        with pytest.raises(fxoffload.ChecksumError) as caught:
            loss.backward()
        message = str(caught.value)
        for part in (f"{VALUE_BYTES} bytes", "came back changed", "spill file", "read again"):
            assert part in message
        del loss, caught
        gc.collect()
        done = fxoffload.statistics()
        assert done.checksum_errors == done.read_errors == 2  # It was read again.
        assert done.live_bytes == 0
        done = job.step()
        assert done.offloaded_bytes == done.written_bytes == done.read_bytes
        assert done.checksum_errors == 0
