"""Workers: the lifetime of a transfer, its callbacks, and the end of the threads."""

from __future__ import annotations

import gc
import logging
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


def test_a_failing_callback_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    transfer = Transfer(len, memoryview(b"ab"))
    told: list[int] = []
    transfer.add_done_callback(lambda _: 1 // 0)
    transfer.add_done_callback(lambda ended: told.append(ended.result()))
    with caplog.at_level(logging.ERROR):
        transfer.run()
    assert told == [2]
    assert "ZeroDivisionError" in caplog.text


def test_waiters_all_wake_up() -> None:
    transfer = Transfer(len, memoryview(b"abc"))
    with pytest.raises(TimeoutError):
        transfer.result(0.001)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(transfer.result())) for _ in range(4)]
    for thread in threads:
        thread.start()
    transfer.run()
    for thread in threads:
        thread.join(30)
    assert found == [3] * 4


def test_callbacks_are_called_once_whoever_comes_first() -> None:
    for _ in range(300):
        transfer = Transfer(len, memoryview(b""))
        told: list[int] = []
        start = threading.Barrier(2)

        def end(transfer: Transfer = transfer, start: threading.Barrier = start) -> None:
            start.wait(30)
            transfer.run()

        thread = threading.Thread(target=end)
        thread.start()
        start.wait(30)
        for index in range(20):
            transfer.add_done_callback(lambda _, index=index, told=told: told.append(index))
        thread.join(30)
        assert sorted(told) == list(range(20))


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
