"""Workers: transfers in threads, and the end of the threads."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import CancelledError

import numpy as np
import pytest

from fxoffload.runtime.engines.workers import Transfer, Workers


def test_a_transfer_runs_and_tells() -> None:
    workers = Workers(2, "test")
    gate = threading.Event()

    def move(view: memoryview) -> int:
        assert gate.wait(30)
        return len(view)

    told: list[int] = []
    transfers = [workers.submit(move, memoryview(bytes(n))) for n in range(5)]
    for transfer in transfers:
        transfer.add_done_callback(lambda ended: told.append(ended.result()))
    assert not any(transfer.done() for transfer in transfers)
    gate.set()
    assert [transfer.result() for transfer in transfers] == [0, 1, 2, 3, 4]
    workers.shutdown()
    assert sorted(told) == [0, 1, 2, 3, 4]
    assert all(transfer.done() and not transfer.cancel() for transfer in transfers)
    transfers[3].add_done_callback(lambda ended: told.append(10 + ended.result()))
    assert told[5:] == [13]


def test_an_error_comes_out_of_the_result() -> None:
    workers = Workers(1, "test")

    def fail(_: memoryview) -> int:
        raise OSError(5, "broken")

    transfer = workers.submit(fail, memoryview(b""))
    for _ in range(2):
        with pytest.raises(OSError, match="broken"):
            transfer.result()
    assert workers.submit(len, memoryview(b"abc")).result() == 3, "the thread goes on"
    workers.shutdown()


def test_a_queued_transfer_can_be_cancelled_and_lets_go() -> None:
    workers = Workers(1, "test")
    gate, started = threading.Event(), threading.Event()

    def move(_: memoryview) -> int:
        started.set()
        assert gate.wait(30)
        return 1

    running = workers.submit(move, memoryview(b""))
    array = np.zeros(1000, np.uint8)
    died = weakref.ref(array)
    queued = workers.submit(move, memoryview(array))
    told: list[Transfer] = []
    queued.add_done_callback(told.append)
    del array
    assert started.wait(30)
    assert not running.cancel()
    assert queued.cancel()
    assert not queued.cancel()
    gc.collect()
    assert died() is None
    assert queued.done()
    assert told == [queued]
    with pytest.raises(CancelledError):
        queued.result()
    gate.set()
    assert running.result() == 1
    workers.shutdown()


def test_shutdown_finishes_the_queue_and_the_threads() -> None:
    before = threading.active_count()
    workers = Workers(3, "test")
    assert threading.active_count() == before + 3
    transfers = [workers.submit(len, memoryview(bytes(n))) for n in range(100)]
    workers.shutdown()
    workers.shutdown()
    assert [transfer.result() for transfer in transfers] == list(range(100))
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="after shutdown"):
        workers.submit(len, memoryview(b""))
