"""Futures of transfers: their end, callbacks, and who runs or cancels a view."""

from __future__ import annotations

import logging
import threading
import weakref
from concurrent.futures import CancelledError

import numpy as np
import pytest

from fxoffload.runtime.engines.future import FollowingFuture, TransferFuture, ViewFuture
from fxoffload.runtime.engines.ioengine import find_outcome


@pytest.mark.parametrize("outcome", [5, 0, None, OSError(5, "broken")])
def test_the_end_is_told(outcome: int | OSError | None) -> None:
    """To callbacks of before, in their order, and to later ones at once."""
    transfer, told = TransferFuture(), list[tuple[int, object]]()
    for index in range(2):
        transfer.add_done_callback(lambda it, index=index: told.append((index, find_outcome(it))))
    assert (transfer.done(), told) == (False, [])
    transfer.end(outcome)
    assert transfer.done()
    transfer.add_done_callback(lambda it: told.append((2, find_outcome(it))))
    assert told == [(index, outcome) for index in range(3)]
    for _ in range(2):
        if isinstance(outcome, int):
            assert transfer.result() == outcome
            continue
        with pytest.raises(CancelledError if outcome is None else OSError):
            transfer.result()


def test_a_failing_callback_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    transfer = TransferFuture()
    told: list[int] = []
    transfer.add_done_callback(lambda _: 1 // 0)
    transfer.add_done_callback(lambda ended: told.append(ended.result()))
    with caplog.at_level(logging.ERROR):
        transfer.end(2)
    assert told == [2]
    assert "ZeroDivisionError" in caplog.text


def test_waiters_all_wake_up() -> None:
    transfer = TransferFuture()
    with pytest.raises(TimeoutError):
        transfer.result(0.001)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(transfer.result())) for _ in range(4)]
    for thread in threads:
        thread.start()
    transfer.end(3)
    for thread in threads:
        thread.join(30)
    assert found == [3] * 4


def test_callbacks_are_called_once_whoever_comes_first() -> None:
    for _ in range(300):
        transfer = TransferFuture()
        told: list[int] = []
        start = threading.Barrier(2)

        def end(transfer: TransferFuture = transfer, start: threading.Barrier = start) -> None:
            start.wait(30)
            transfer.end(0)

        thread = threading.Thread(target=end)
        thread.start()
        start.wait(30)
        for index in range(20):
            transfer.add_done_callback(lambda _, index=index, told=told: told.append(index))
        thread.join(30)
        assert sorted(told) == list(range(20))


def test_one_thread_takes_the_view() -> None:
    for first in ("run", "cancel"):
        transfer = ViewFuture(memoryview(b"abc"))
        if first == "run":
            assert transfer.take_view() == b"abc"
            assert not transfer.cancel()
            assert not transfer.done()
        else:
            assert transfer.cancel()
            assert transfer.take_view() is None
            assert find_outcome(transfer) is None
        assert not transfer.cancel()


def test_a_cancelled_transfer_lets_go_of_its_memory() -> None:
    array = np.zeros(1000, np.uint8)
    died = weakref.ref(array)
    transfer = ViewFuture(memoryview(array))
    del array
    assert died() is not None
    assert transfer.cancel()
    assert died() is None


def test_what_follows_ends_as_the_other_does() -> None:
    for outcome in (7, None, OSError(5, "broken")):
        follower, inner = FollowingFuture(), ViewFuture(memoryview(b""))
        assert not follower.cancel(), "there is nothing to cancel yet"
        follower.follow(inner)
        if outcome is None:
            assert follower.cancel()
        else:
            inner.take_view()
            inner.end(outcome)
            assert not follower.cancel()
        assert find_outcome(follower) is outcome


def test_an_error_of_the_conclusion_is_the_outcome() -> None:
    """Without the frames in which it was raised: they would keep tensors alive."""

    class Failing(FollowingFuture):
        def conclude(self, outcome: int | Exception | None) -> int | Exception | None:
            raise ValueError(outcome)

    follower, inner = Failing(), TransferFuture()
    follower.follow(inner)
    inner.end(7)
    found = follower._outcome
    assert isinstance(found, ValueError)
    assert (found.args, found.__traceback__) == ((7,), None)
