"""The ledger: bytes in flight and their cap, how transfers end, death, forks and close."""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import pytest
import torch
from flaky_engine import FlakyEngine
from round_trips import CAP, check_empty, fetch, fill, offload, round_trip, wait_stored

from fxoffload import inflight
from fxoffload.errors import StoreClosed
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.workers import Transfer
from fxoffload.runtime.store.ledger import Ledger
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.runtime.store.ticket import Ticket


def test_release_waits_and_counts_the_time(last_store: OffloadStore, flaky: FlakyEngine) -> None:
    flaky.gate.clear()
    x = fill(100_000)
    ticket = offload(last_store, x)
    flaky.start()
    returned = threading.Event()

    def release() -> None:
        last_store.release(ticket, block=True)
        returned.set()

    thread = threading.Thread(target=release)
    thread.start()
    assert flaky.queued[0][0].awaited.wait(30)
    assert not returned.wait(0.01)
    flaky.finish()
    thread.join(30)
    assert returned.is_set()
    assert last_store.statistics().exposed_seconds >= 0.01
    last_store.free(ticket)


def test_free_cancels_a_queued_write(last_store: OffloadStore, flaky: FlakyEngine) -> None:
    flaky.gate.clear()
    ticket = offload(last_store, fill(100_000))
    last_store.free(ticket)
    record = last_store.statistics()
    assert record.cancelled_bytes == 100_000
    assert record.inflight_bytes == record.live_bytes == 0
    assert ticket.freed
    assert ticket.outgoing is None


def test_free_during_a_write_keeps_the_slot_until_its_end(
    last_store: OffloadStore, flaky: FlakyEngine
) -> None:
    flaky.gate.clear()
    ticket = offload(last_store, fill(100_000))
    flaky.start()
    last_store.free(ticket)
    assert last_store.statistics().live_bytes == 100_000
    flaky.finish()
    assert last_store.statistics().live_bytes == 0


def test_free_during_a_read_keeps_the_slot_until_its_end(
    last_store: OffloadStore, flaky: FlakyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading: Future[int] = Future()
    for nbytes in (100_000, 1000):
        reading = Future()
        x = fill(nbytes)
        ticket = offload(last_store, x)
        last_store.release(ticket, block=True)
        wait_stored(ticket)
        reading.set_running_or_notify_cancel()
        monkeypatch.setattr(flaky, "read", lambda *_, reading=reading: reading)
        last_store.prefetch(ticket)
        last_store.free(ticket)
        assert last_store.statistics().live_bytes == nbytes
        reading.set_result(0)
        assert last_store.statistics().live_bytes == 0


def test_free_inside_the_lock_waits_for_the_next_call(last_store: OffloadStore) -> None:
    ticket = offload(last_store, fill(100_000))
    last_store.release(ticket, block=True)
    with last_store._ledger.lock:
        last_store.free(ticket)  # As the garbage collector does inside an allocation.
        assert not ticket.freed
    assert last_store.statistics().live_bytes == 0
    assert ticket.freed


def test_three_of_the_largest_values_fit_the_default_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflight, "LEAST_CAP_BYTES", 100)
    ledger, entered = Ledger(None), threading.Event()
    for _ in range(3):
        ledger.enter_flight("x", 50, capped=True)  # 150 bytes are more than the least cap.

    def enter() -> None:
        ledger.enter_flight("y", 1, capped=True)
        entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.05)
    with ledger.lock:
        ledger.leave_flight(50, capped=True)
    assert entered.wait(30)
    thread.join(30)
    assert ledger.counters.inflight_bytes == 101
    assert ledger.counters.peak_inflight_bytes == 150


def test_the_cap_makes_an_offload_wait(
    last_store: OffloadStore, flaky: FlakyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky.gate.clear()
    room, waiting = last_store._ledger._changed, threading.Event()
    wait = room.wait
    monkeypatch.setattr(room, "wait", lambda: waiting.set() or wait())
    size = 3 * 2**20
    tickets = [offload(last_store, fill(size)) for _ in range(2)]
    entered = threading.Event()

    def third() -> None:
        tickets.append(offload(last_store, fill(size)))
        entered.set()

    thread = threading.Thread(target=third)
    thread.start()
    assert waiting.wait(30)
    assert not entered.wait(0.01)
    flaky.finish()
    assert entered.wait(30)
    thread.join(30)
    record = last_store.statistics()
    assert record.peak_inflight_bytes == 2 * size
    assert record.exposed_seconds >= 0.01
    for ticket in tickets:
        last_store.free(ticket)


def test_one_value_above_the_cap_goes_alone(last_store: OffloadStore) -> None:
    x = fill(9 * 2**20)
    assert torch.equal(round_trip(last_store, x), x)


@pytest.mark.parametrize("nbytes", [1000, 100_000])
@pytest.mark.parametrize("block", [True, False])
def test_a_failed_write_loses_nothing(
    last_store: OffloadStore, flaky: FlakyEngine, nbytes: int, block: bool
) -> None:
    flaky.write_failures = 2
    x = fill(nbytes)
    expected = x.clone()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ticket = offload(last_store, x, "value_7")
        last_store.release(ticket, block=block)
        last_store.statistics()
    (message,) = [str(warning.message) for warning in said]
    assert re.search(rf"^value_7: .*{nbytes} bytes.*No space left", message)
    if block:
        x.zero_()
    assert ticket.outgoing is not None
    assert torch.equal(fetch(last_store, ticket), expected)
    again = offload(last_store, expected)
    last_store.release(again, block=True)
    record = last_store.statistics()
    assert record.write_errors == 2
    assert record.live_bytes == record.inflight_bytes == record.written_bytes == 0
    last_store.free(ticket)
    last_store.free(again)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), MemoryError(), ValueError("odd")])
def test_a_write_may_fail_by_any_exception(error: Exception) -> None:
    """At the cap the next value waits for the end of the first write, however that ends."""

    class Failing(MemoryEngine):
        def write(self, view: memoryview, offset: int) -> Transfer:
            def raise_error(_: memoryview) -> int:
                raise error

            return self._writers.submit(raise_error, view)

    store = OffloadStore({"nvme": Failing(1_000_000)}, max_inflight_bytes=1)
    values = [fill(50_000, seed) for seed in range(2)]
    tickets: list[Ticket] = []
    worker = threading.Thread(
        target=lambda: tickets.extend(store.offload(x, "x", "nvme", True) for x in values),
        daemon=True,
    )
    worker.start()
    worker.join(timeout=20)
    assert len(tickets) == 2, "the second value waits for ever"
    with pytest.warns(RuntimeWarning, match="the value stays in memory"):
        store.release(tickets[1], block=True)
    for ticket, value in zip(tickets, values, strict=True):
        wait_stored(ticket)  # Else it may be freed, and its write cancelled, before that fails.
        assert torch.equal(fetch(store, ticket), value)
        store.free(ticket)
    assert store.statistics().write_errors == 2
    check_empty(store)
    store.close()


def test_a_failed_copy_to_staging_leaves_the_flight(
    last_store: OffloadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_to_allocate(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("fxoffload.runtime.devices.host.HostOutgoing", fail_to_allocate)
    with pytest.raises(MemoryError):
        offload(last_store, fill(1000))
    assert last_store.statistics().inflight_bytes == 0


class SpyLock:
    """A lock that notes when somebody is ready to wait for it."""

    def __init__(self, inner: threading.Lock) -> None:
        self._inner = inner
        self.waited = 0

    def acquire(self, blocking: bool = True) -> bool:
        self.waited += blocking
        return self._inner.acquire(blocking)

    def release(self) -> None:
        self._inner.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.mark.parametrize("state", ["writing", "queued", "reading", "stored"])
def test_free_never_waits_for_the_lock(flaky: FlakyEngine, state: str) -> None:
    """It runs in finalizers: in threads that may hold what the lock's owner waits for."""
    store = OffloadStore({"nvme": flaky}, max_inflight_bytes=CAP)
    if state in ("writing", "queued"):
        flaky.gate.clear()
    ticket = offload(store, fill(100_000))
    if state == "writing":
        flaky.start()
    elif state != "queued":
        store.release(ticket, block=True)
    reading: Future[int] = Future()
    if state == "reading":
        flaky.read = lambda *_: reading
        store.prefetch(ticket)
    spy = store._ledger.lock = SpyLock(store._ledger.lock)
    store.free(ticket)
    assert spy.waited == 0
    assert ticket.freed
    assert (ticket.slot is None) == (state != "writing")
    store.close()
    check_empty(store)


def test_nothing_is_handed_to_an_engine_under_the_lock(
    flaky: FlakyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An executor has locks of its own, and a finalizer inside them may want that of the store."""
    store = OffloadStore({"nvme": flaky}, max_inflight_bytes=CAP)
    free: list[bool] = []

    def watch(call: Callable[[memoryview, int], Future[int]]) -> Callable[..., Future[int]]:
        def start(view: memoryview, offset: int) -> Future[int]:
            free.append(not store._ledger.lock.locked())
            return call(view, offset)

        return start

    monkeypatch.setattr(flaky, "write", watch(flaky.write))
    monkeypatch.setattr(flaky, "read", watch(flaky.read))
    flaky.read_failures = 1
    x = fill(100_000)
    ticket = offload(store, x)
    store.release(ticket, block=True)
    assert torch.equal(fetch(store, ticket), x)
    store.free(ticket)
    assert free == [True] * 3
    store.close()


def test_a_fork_waits_for_reads(flaky: FlakyEngine) -> None:
    store = OffloadStore({"nvme": flaky}, max_inflight_bytes=CAP)
    reading, waited = [Future[int](), Future[int]()], threading.Event()
    started = iter(reading)
    tickets = [offload(store, fill(100_000)) for _ in range(2)]
    for ticket in tickets:
        store.release(ticket, block=True)
    flaky.read = lambda *_: next(started)
    store.prefetch(tickets[0])
    forking = threading.Thread(target=lambda: (store.pause_reads(), waited.set()))
    forking.start()
    assert not waited.wait(0.05)
    other = threading.Thread(target=store.prefetch, args=(tickets[1],))
    other.start()
    reading[0].set_result(0)
    assert waited.wait(30)
    other.join(0.05)
    assert other.is_alive(), "no read starts meanwhile"
    store.resume_reads()
    other.join(30)
    assert not other.is_alive()
    reading[1].set_result(0)
    for ticket in tickets:
        store.free(ticket)
    forking.join(30)
    check_empty(store)
    store.close()


@pytest.mark.parametrize("verb", ["write", "read"])
def test_close_waits_for_what_is_being_started(
    flaky: FlakyEngine, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A transfer that is handed to a closed engine would never end."""
    store = OffloadStore({"nvme": flaky}, max_inflight_bytes=CAP)
    ticket = offload(store, fill(100_000))
    store.release(ticket, block=True)
    starting, gate = threading.Event(), threading.Event()
    order: list[str] = []
    move, close = getattr(flaky, verb), flaky.close

    def start(view: memoryview, offset: int) -> Future[int]:
        starting.set()
        assert gate.wait(30)
        order.append("started")
        return move(view, offset)

    monkeypatch.setattr(flaky, verb, start)
    monkeypatch.setattr(flaky, "close", lambda: (order.append("closed"), close()))
    begin = (
        partial(offload, store, fill(100_000))
        if verb == "write"
        else partial(store.prefetch, ticket)
    )
    threads = [threading.Thread(target=begin), threading.Thread(target=store.close)]
    threads[0].start()
    assert starting.wait(30)
    threads[1].start()
    threads[1].join(0.05)
    gate.set()
    for thread in threads:
        thread.join(30)
    assert order == ["started", "closed"]
    store.free(ticket)


def test_close_lets_a_waiting_offload_go(last_store: OffloadStore, flaky: FlakyEngine) -> None:
    flaky.gate.clear()
    first = offload(last_store, fill(2**23))
    errors: list[BaseException] = []
    started = threading.Event()

    def second() -> None:
        started.set()
        try:
            offload(last_store, fill(2**23))
        except StoreClosed as error:
            errors.append(error)

    thread = threading.Thread(target=second)
    thread.start()
    assert started.wait(30)
    last_store.close()
    thread.join(30)
    assert len(errors) == 1
    last_store.free(first)
