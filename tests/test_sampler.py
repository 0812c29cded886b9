"""The thread that looks at what is held between two ops."""

from __future__ import annotations

import threading
import time

import pytest
from waiting import wait_until

from fxoffload.runtime.program import sampler
from fxoffload.runtime.program.sampler import HeldSampler, Rate


class Counts:
    """Answers `nbytes`, and notes how often it was asked."""

    def __init__(self) -> None:
        self.nbytes: int | None = 1
        self.asked = 0

    def __call__(self) -> int | None:
        self.asked += 1
        return self.nbytes

    def wait(self) -> None:
        """Until it was asked with its present answer."""
        asked = self.asked
        wait_until(lambda: self.asked > asked + 1)


def find_samplers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "fxoffload-sampler"}


@pytest.fixture(autouse=True)
def others() -> set[threading.Thread]:
    """Those of other tests."""
    return find_samplers()


def test_the_highest_since_the_last_take(others: set[threading.Thread]) -> None:
    counts = Counts()
    watched = HeldSampler(counts)
    for nbytes in (5, 9, 2):
        counts.nbytes = nbytes
        counts.wait()
    assert watched.take().highest == 9
    counts.wait()
    taken = watched._taken
    assert watched.take().highest == 2
    assert watched._taken > taken, "an op has run"
    assert all(thread.daemon for thread in find_samplers()), "no process waits for it to end"
    watched.stop()
    assert watched._stopped.is_set()
    wait_until(lambda: find_samplers() <= others)


def test_the_longest_time_without_a_count() -> None:
    """From one take to the next, its ends included."""
    counts = Counts()
    watched = HeldSampler(counts)
    counts.wait()
    start = time.monotonic()
    watched.take()
    entered, go = threading.Event(), threading.Event()
    counting = watched._count

    def count_slowly() -> int | None:
        watched._count = counting
        entered.set()
        go.wait()
        return counting()

    watched._count = count_slowly
    entered.wait()
    time.sleep(0.1)
    taken = time.monotonic()
    begun = watched.take()
    assert 0.1 <= begun.unseen_seconds <= time.monotonic() - start
    assert begun.highest in (None, 1)
    time.sleep(0.05)
    go.set()
    counts.wait()
    assert 0.05 <= watched.take().unseen_seconds <= time.monotonic() - taken
    watched.stop()


def test_it_ends_where_nothing_is_counted(others: set[threading.Thread]) -> None:
    counts = Counts()
    counts.nbytes = None
    watched = HeldSampler(counts)
    wait_until(lambda: find_samplers() <= others)
    assert counts.asked == 1
    assert watched.take().highest is None


def test_it_ends_where_no_op_runs_any_more(
    others: set[threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "IDLE_SECONDS", 0.05)
    HeldSampler(Counts())
    wait_until(lambda: find_samplers() <= others)


@pytest.mark.parametrize(("share", "least", "most"), [(1.0, 5, 1000), (0.02, 1, 4)])
def test_it_counts_no_more_than_its_share(share: float, least: int, most: int) -> None:
    """Of the time of a processor: 20 ms of each count."""
    asked = list[float]()

    def count() -> int:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        asked.append(end)
        return 1

    watched = HeldSampler(count, Rate(0.0001, share))
    start = time.monotonic()
    wait_until(lambda: len(asked) >= least and time.monotonic() > start + 1.0)
    watched.stop()
    assert least <= len(asked) <= most
