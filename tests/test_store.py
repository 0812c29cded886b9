"""The store: every value comes back right, in time, whatever fails; and nothing stays behind."""

from __future__ import annotations

import errno
import os
import random
import re
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fxoffload.errors import StoreClosed, StoreError, StoreFull, TransferError
from fxoffload.runtime.devices.buffers import find_span
from fxoffload.runtime.engines.checksum import CheckedEngine
from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.posix import PosixEngine
from fxoffload.runtime.engines.spill_file import SpillFile
from fxoffload.runtime.engines.workers import Transfer
from fxoffload.runtime.store.counters import StoreStatistics
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.runtime.store.ticket import Ticket
from fxoffload.torch_internals import is_shared, make_version_counter

CAP = 2**30
SIZES = (0, 1, 511, 512, 513, 4097, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 3_000_001)


class WatchedFuture(Future[int]):
    """Tells when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.awaited = threading.Event()

    def result(self, timeout: float | None = None) -> int:
        self.awaited.set()
        return super().result(timeout)


@dataclass
class FlakyEngine:
    """An engine whose writes wait for `gate`, and whose transfers fail when told to."""

    inner: IOEngine
    gate: threading.Event = field(default_factory=threading.Event)
    queued: list[tuple[WatchedFuture, memoryview, int]] = field(default_factory=list)
    write_failures: int = 0
    read_failures: int = 0
    short_reads: int = 0
    reads: int = 0

    name = "flaky"

    def __post_init__(self) -> None:
        self.gate.set()
        self.alignment = self.inner.alignment
        self.allocate, self.free = self.inner.allocate, self.inner.free
        self.reserve, self.describe = self.inner.reserve, self.inner.describe
        self.abandon = self.inner.abandon

    def write(self, view: memoryview, offset: int) -> Future[int]:
        if self.write_failures:
            self.write_failures -= 1
            return fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        if self.gate.is_set():
            return self.inner.write(view, offset)
        future = WatchedFuture()
        self.queued.append((future, view, offset))
        return future

    def start(self, index: int = 0) -> None:
        """Let a queued write begin, so that it can no longer be cancelled, but not end."""
        assert self.queued[index][0].set_running_or_notify_cancel()

    def finish(self, index: int = 0) -> None:
        future, view, offset = self.queued.pop(index)
        if future.running() or future.set_running_or_notify_cancel():
            future.set_result(self.inner.write(view, offset).result())

    def read(self, view: memoryview, offset: int) -> Future[int]:
        self.reads += 1
        if self.read_failures:
            self.read_failures -= 1
            return fail(OSError(errno.EIO, os.strerror(errno.EIO)))
        if self.short_reads:
            self.short_reads -= 1
            future: Future[int] = Future()
            future.set_result(len(view) - 1)
            return future
        return self.inner.read(view, offset)

    def close(self) -> None:
        while self.queued:
            self.finish()
        self.inner.close()


def fail(error: OSError) -> Future[int]:
    future: Future[int] = Future()
    future.set_exception(error)
    return future


@pytest.fixture(params=["posix", "memory"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> IOEngine:
    if request.param == "posix":
        return PosixEngine([SpillFile(tmp_path)])
    return MemoryEngine(2**28)


@pytest.fixture
def store(engine: IOEngine) -> Iterator[OffloadStore]:
    store = OffloadStore({"nvme": engine}, max_inflight_bytes=CAP)
    yield store
    check_empty(store)
    store.close()


@pytest.fixture
def flaky(engine: IOEngine) -> FlakyEngine:
    return FlakyEngine(engine)


@pytest.fixture
def last_store(flaky: FlakyEngine) -> Iterator[OffloadStore]:
    """A store on `flaky` in which every backward is the last."""
    store = OffloadStore({"nvme": flaky}, max_inflight_bytes=8 * 2**20, keeps_graph=lambda: False)
    yield store
    store.close()
    check_empty(store)


def check_empty(store: OffloadStore) -> None:
    deadline = time.monotonic() + 30
    while True:
        record = store.statistics()
        if record.inflight_bytes == record.live_bytes == 0:
            return
        assert time.monotonic() < deadline, record
        time.sleep(0.001)  # A transfer of a freed ticket ends in a worker thread.


def fill(nbytes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)


def offload(store: OffloadStore, x: torch.Tensor, name: str = "x", owned: bool = True) -> Ticket:
    return store.offload(x, name, "nvme", owned, site=name)


def fetch(store: OffloadStore, ticket: Ticket) -> torch.Tensor:
    store.prefetch(ticket)
    return store.wait(ticket)


def round_trip(store: OffloadStore, x: torch.Tensor) -> torch.Tensor:
    ticket = offload(store, x)
    store.release(ticket, block=True)
    wait_stored(ticket)
    y = fetch(store, ticket)
    assert y.storage_offset() == 0
    store.free(ticket)
    return y


def wait_stored(ticket: Ticket) -> None:
    """A staged value stays in memory until its write has ended, which nobody waits for."""
    deadline = time.monotonic() + 30
    while ticket.write is not None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def make_values() -> dict[str, torch.Tensor]:
    base = torch.randn(300, 500)
    return {
        "bfloat16": torch.randn(77_777).bfloat16(),
        "bool": torch.rand(100_003) > 0.5,
        "int64": torch.arange(33_333),
        "complex64": torch.randn(20_001, dtype=torch.complex64),
        "conjugated": torch.randn(20_001, dtype=torch.complex64).conj(),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 5),
        "transposed": base.t(),
        "permuted": torch.randn(20, 30, 40).permute(2, 0, 1),
        "window": base[10:200, 50:150],
        "offset view": base.view(-1)[12_345:],
        "gaps": torch.randn(200_000)[::3],
        "expanded": torch.randn(1, 30_000).expand(7, 30_000),
        "expanded small": torch.randn(3, 1).expand(3, 4),
        "expanded gaps": torch.randn(100_000)[::4].expand(3, 25_000),
        "overlapping": torch.randn(50_000).as_strided((24_000, 3), (2, 1)),
        "tiny gaps": torch.randn(10, 10)[:, ::2],
    }


@pytest.mark.parametrize("nbytes", SIZES)
def test_sizes(store: OffloadStore, nbytes: int) -> None:
    x = fill(nbytes)
    assert torch.equal(round_trip(store, x), x)


@pytest.mark.parametrize("name", make_values())
@pytest.mark.parametrize("forwarded", [False, True])
def test_dtypes_and_layouts(store: OffloadStore, name: str, forwarded: bool) -> None:
    x = make_values()[name]
    if not forwarded:
        y = round_trip(store, x)
    else:
        ticket = offload(store, x)
        y = fetch(store, ticket)
        store.free(ticket)
    assert torch.equal(y, x)
    assert y.dtype == x.dtype
    if find_span(x) <= x.nbytes:  # Else a dense copy goes out.
        assert y.stride() == x.stride()
    assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() or y.numel() == 0


def test_the_memory_of_x_is_free_after_a_blocking_release(store: OffloadStore) -> None:
    for nbytes in SIZES:
        x = fill(nbytes)
        expected = x.clone()
        ticket = offload(store, x)
        store.release(ticket, block=True)
        x.zero_()
        assert torch.equal(fetch(store, ticket), expected)
        store.free(ticket)


def test_many_values_in_random_order(store: OffloadStore) -> None:
    rng = random.Random(1)
    values = [fill(rng.randrange(1, 300_000), seed) for seed in range(60)]
    tickets = []
    for value in values:
        x = value.clone()
        tickets.append(offload(store, x))
        store.release(tickets[-1], block=rng.random() < 0.5)
    for index in rng.sample(range(60), 60):
        assert torch.equal(fetch(store, tickets[index]), values[index])
        store.free(tickets[index])


def test_reads_in_flight_together(store: OffloadStore) -> None:
    values = [fill(200_000 + i, i) for i in range(6)]
    tickets = [offload(store, value) for value in values]
    for ticket in tickets:
        store.release(ticket, block=True)
    for ticket in tickets:
        store.prefetch(ticket)
    for index in (3, 0, 5, 1, 4, 2):
        assert torch.equal(store.wait(tickets[index]), values[index])
        store.free(tickets[index])


def test_a_ticket_can_be_read_again(store: OffloadStore) -> None:
    x = fill(500_000)
    ticket = offload(store, x)
    store.release(ticket, block=True)
    first = fetch(store, ticket)
    first.zero_()
    for _ in range(2):
        store.prefetch(ticket)
    together = [store.wait(ticket) for _ in range(2)]
    assert together[0].data_ptr() != together[1].data_ptr()
    assert all(torch.equal(y, x) for y in together)
    assert not ticket.prefetches
    store.free(ticket)
    assert ticket.slot is None


def test_slots_are_reused(store: OffloadStore, engine: IOEngine) -> None:
    ends = set()
    for _ in range(20):
        tickets = [offload(store, fill(100_000 + 5000 * i)) for i in range(5)]
        for ticket in tickets:
            store.release(ticket, block=True)
        assert isinstance(engine, PosixEngine | MemoryEngine)
        ends.add(engine.end_bytes)
        for ticket in reversed(tickets):
            store.free(ticket)
        assert store.statistics().live_bytes == 0  # Ends what a worker had kept the lock from.
    assert len(ends) == 1
    assert engine.end_bytes == 0


def test_counters(flaky: FlakyEngine) -> None:
    store = OffloadStore({"nvme": flaky}, max_inflight_bytes=CAP)
    flaky.gate.clear()
    x = fill(100_000)
    ticket = store.offload(x, "x", "nvme", True, 11)
    assert not ticket.stored
    record = store.statistics()
    assert (record.inflight_bytes, record.live_bytes) == (100_000, 100_000)
    flaky.finish()
    assert ticket.stored
    store.release(ticket, block=True)
    assert torch.equal(fetch(store, ticket), x)
    record = store.statistics()
    assert record.offloads == 1
    assert record.offloaded_bytes == record.written_bytes == record.read_bytes == 100_000
    assert record.peak_inflight_bytes == record.live_bytes == 100_000
    assert (record.deduplicated_bytes, record.forwarded_bytes) == (11, 0)
    assert record.ioengine == "flaky"
    store.reset_statistics()
    assert store.statistics().written_bytes == 0
    assert store.statistics().live_bytes == 100_000
    store.free(ticket)
    check_empty(store)
    store.close()


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


def test_release_of_staged_or_unblocked_values_returns_at_once(
    last_store: OffloadStore, flaky: FlakyEngine
) -> None:
    flaky.gate.clear()
    staged, unblocked = offload(last_store, fill(1000)), offload(last_store, fill(100_000))
    last_store.release(staged, block=True)
    last_store.release(unblocked, block=False)
    assert last_store.statistics().exposed_seconds == 0
    for ticket in (staged, unblocked):
        last_store.free(ticket)


@pytest.mark.parametrize("block", [True, False])
def test_x_is_let_go_when_written_and_released(
    last_store: OffloadStore, flaky: FlakyEngine, block: bool
) -> None:
    flaky.gate.clear()
    x = fill(100_000)
    storage = weakref.ref(x.untyped_storage())
    ticket = offload(last_store, x)
    if not block:
        last_store.release(ticket, block=False)
        assert ticket.outgoing is not None
    flaky.finish()
    if block:
        assert ticket.outgoing is not None
        last_store.release(ticket, block=True)
    assert ticket.outgoing is None
    del x, storage
    last_store.free(ticket)


@pytest.mark.parametrize("started", [False, True])
def test_forwarding_the_tensor_itself(
    last_store: OffloadStore, flaky: FlakyEngine, started: bool
) -> None:
    flaky.gate.clear()
    x = fill(100_000)
    expected = x.clone()
    ticket = offload(last_store, x)
    last_store.release(ticket, block=False)
    if started:
        flaky.start()
    y = fetch(last_store, ticket)
    assert y.data_ptr() == x.data_ptr()
    assert torch.equal(y, expected)
    y.zero_()
    if started:
        flaky.finish()
    record = last_store.statistics()
    assert record.forwarded_bytes == 100_000
    assert record.cancelled_bytes == (0 if started else 100_000)
    assert record.inflight_bytes == record.live_bytes == 0
    with pytest.raises(StoreError, match="retain_graph=True"):
        last_store.prefetch(ticket)
    last_store.free(ticket)
    assert flaky.reads == 0


@pytest.mark.parametrize(
    ("why", "x"),
    [
        ("the caller's", fill(100_000)),
        ("behind the start of its storage", fill(200_000)[50_000:]),
        ("staged", fill(1000)),
        ("not released", fill(100_000)),
    ],
)
def test_forwarding_a_copy(
    last_store: OffloadStore, flaky: FlakyEngine, why: str, x: torch.Tensor
) -> None:
    flaky.gate.clear()
    ticket = offload(last_store, x, owned=why != "the caller's")
    if why != "not released":
        last_store.release(ticket, block=False)
    y = fetch(last_store, ticket)
    assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert y.storage_offset() == 0
    assert torch.equal(y, x)
    assert last_store.statistics().cancelled_bytes == x.numel()
    last_store.free(ticket)


def test_a_kept_graph_gets_copies_and_its_write_goes_on(flaky: FlakyEngine) -> None:
    kept = True
    store = OffloadStore({"nvme": flaky}, max_inflight_bytes=CAP, keeps_graph=lambda: kept)
    flaky.gate.clear()
    x = fill(100_000)
    expected = x.clone()
    ticket = offload(store, x)
    store.release(ticket, block=False)
    fetch(store, ticket).zero_()
    assert torch.equal(fetch(store, ticket), expected)
    assert store.statistics().cancelled_bytes == 0
    flaky.finish()
    assert ticket.outgoing is None
    kept = False
    assert torch.equal(fetch(store, ticket), expected)
    assert flaky.reads == 1
    store.free(ticket)
    check_empty(store)
    store.close()


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


def test_a_full_store_keeps_values_in_memory() -> None:
    store = OffloadStore({"nvme": MemoryEngine(100_000)}, max_inflight_bytes=CAP)
    values = [fill(80_000, seed) for seed in range(3)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tickets = [offload(store, value.clone()) for value in values]
        for ticket in tickets:
            store.release(ticket, block=True)
    (message,) = [str(warning.message) for warning in said]
    assert "the limit is 97.7 KiB" in message
    for ticket, value in zip(tickets, values, strict=True):
        assert torch.equal(fetch(store, ticket), value)
        store.free(ticket)
    assert store.statistics().write_errors == 2
    check_empty(store)
    store.close()


@pytest.mark.parametrize("nbytes", [1000, 300_001])
def test_what_finds_the_host_tier_full_goes_to_nvme(engine: IOEngine, nbytes: int) -> None:
    host = MemoryEngine(2 * -(-nbytes // 512) * 512)
    store = OffloadStore({"nvme": engine, "host": host}, max_inflight_bytes=CAP)
    values = [fill(nbytes, seed) for seed in range(5)]
    tickets = [store.offload(value.clone(), "x", "host", True) for value in values]
    for ticket in tickets:
        store.release(ticket, block=True)
        wait_stored(ticket)
    assert [ticket.tier for ticket in tickets] == ["host"] * 2 + ["nvme"] * 3
    record = store.statistics()
    assert record.write_errors == 0
    assert (record.written_bytes, record.live_bytes) == (5 * nbytes, 5 * nbytes)
    assert (record.host_written_bytes, record.host_live_bytes) == (2 * nbytes, 2 * nbytes)
    assert record.host_overflow_bytes == record.nvme_written_bytes == 3 * nbytes
    for ticket, value in zip(tickets, values, strict=True):
        assert torch.equal(fetch(store, ticket), value)
    record = store.statistics()
    assert (record.read_bytes, record.host_read_bytes) == (5 * nbytes, 2 * nbytes)
    for ticket in tickets:
        store.free(ticket)
    again = store.offload(values[0], "x", "host", True)
    assert again.tier == "host", "there is room again"
    store.free(again)
    check_empty(store)
    assert store.statistics().host_live_bytes == host.end_bytes == 0
    store.close()


def test_with_both_tiers_full_values_stay_in_memory() -> None:
    engines = {"nvme": MemoryEngine(100_000), "host": MemoryEngine(100_000)}
    store = OffloadStore(engines, max_inflight_bytes=CAP)
    values = [fill(80_000, seed) for seed in range(3)]
    tickets = [store.offload(value, "x", "host", True) for value in values]
    with pytest.warns(RuntimeWarning, match="the value stays in memory"):
        store.release(tickets[2], block=True)
    for ticket, value in zip(tickets, values, strict=True):
        assert torch.equal(fetch(store, ticket), value)
        store.free(ticket)
    record = store.statistics()
    assert (record.write_errors, record.host_overflow_bytes) == (1, 80_000)
    check_empty(store)
    store.close()


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


def test_what_interrupts_the_start_of_a_write_leaves_its_slot_alone(
    flaky: FlakyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may come when the write has begun: its slot must not be written by another."""
    store = OffloadStore({"nvme": flaky}, max_inflight_bytes=CAP)
    used: list[int] = []
    write = FlakyEngine.write

    def interrupt(view: memoryview, offset: int) -> Future[int]:
        used.append(offset)
        flaky.gate.clear()
        write(flaky, view, offset)
        raise KeyboardInterrupt

    monkeypatch.setattr(flaky, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        offload(store, fill(1000))
    monkeypatch.undo()
    flaky.gate.set()
    x = fill(1000, seed=1)
    ticket = offload(store, x)
    assert ticket.slot not in used
    flaky.finish()
    wait_stored(ticket)
    assert torch.equal(fetch(store, ticket), x)
    store.free(ticket)
    record = store.statistics()
    assert (record.inflight_bytes, record.live_bytes) == (0, 1000)
    store.close()


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


@pytest.mark.parametrize("nbytes", [1000, 100_000])
@pytest.mark.parametrize("written", [False, True])
def test_a_callers_tensor_that_was_changed(flaky: FlakyEngine, nbytes: int, written: bool) -> None:
    """Whoever wrote first: autograd raises where it finds another version than was saved."""
    store = OffloadStore({"nvme": flaky}, max_inflight_bytes=CAP, make_counter=make_version_counter)
    flaky.gate.clear()
    x = fill(nbytes)
    ticket = offload(store, x, owned=False)
    store.release(ticket, block=False)
    if written:
        flaky.finish()
        assert ticket.outgoing is None
    x[1:].mul_(2)  # By a view.
    for bring_back in (store.prefetch, store.wait):
        with pytest.raises(RuntimeError, match=r"x: .*modified by an inplace .* at version 1"):
            bring_back(ticket)
    store.free(ticket)
    store.close()
    check_empty(store)


def test_the_watch_over_a_callers_tensor_keeps_no_memory(store: OffloadStore) -> None:
    x = fill(100_000)
    storage = StorageWeakRef(x.untyped_storage())
    ticket = offload(store, x, owned=False)
    store.release(ticket, block=True)
    assert not storage.expired()
    del x
    assert storage.expired()
    assert torch.equal(fetch(store, ticket), fill(100_000))
    store.free(ticket)


def test_what_the_caller_keeps_is_written_once(engine: IOEngine) -> None:
    store = OffloadStore({"nvme": engine}, max_inflight_bytes=CAP, is_shared=is_shared)

    def step(box: list[torch.Tensor], *, keep: bool, site: str = "graph x") -> StoreStatistics:
        x = box[0]
        expected = x.clone()
        store.reset_statistics()
        ticket = store.offload(x, "x", "nvme", False, site=site)
        store.release(ticket, block=True)
        if not keep:
            box.clear()
        del x
        wait_stored(ticket)
        for _ in range(2):  # A second backward.
            y = fetch(store, ticket)
            assert torch.equal(y, expected)
            y.zero_()  # It is the backward's own.
        store.free(ticket)
        return store.statistics()

    x = fill(100_000)
    assert step([x], keep=True).written_bytes == 100_000
    for _ in range(2):
        done = step([x], keep=True)
        assert done.kept_bytes == 100_000
        assert done.offloads == done.written_bytes == done.read_bytes == done.forwarded_bytes == 0
    assert step([x], keep=True, site="graph y").written_bytes == 100_000, "of another site"
    # Once it is seen that nobody else keeps it, it moves again, for good.
    done = step([fill(100_000)], keep=False)
    assert done.kept_bytes == 100_000
    for _ in range(2):
        assert step([x], keep=True).written_bytes == 100_000
    check_empty(store)
    store.close()


def test_a_small_value_comes_back_whole_through_large_pages() -> None:
    """The read must be as long as the write: a digest is that of all that was written."""

    class LargePages(MemoryEngine):
        alignment = 64 * 2**10

    store = OffloadStore({"nvme": CheckedEngine(LargePages(2**24))}, max_inflight_bytes=CAP)
    x = fill(1000)
    assert torch.equal(round_trip(store, x), x)
    assert store.statistics().checksum_errors == 0
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


@pytest.mark.parametrize("nbytes", [1000, 100_000])
@pytest.mark.parametrize("kind", ["read_failures", "short_reads"])
def test_a_failed_read_is_tried_again(
    last_store: OffloadStore, flaky: FlakyEngine, nbytes: int, kind: str
) -> None:
    x = fill(nbytes)
    ticket = offload(last_store, x)
    last_store.release(ticket, block=True)
    wait_stored(ticket)
    setattr(flaky, kind, 1)
    assert torch.equal(fetch(last_store, ticket), x)
    assert last_store.statistics().read_errors == 1
    assert flaky.reads == 2
    last_store.free(ticket)


@pytest.mark.parametrize("nbytes", [1000, 100_000])
def test_a_read_that_fails_for_good_says_all(
    last_store: OffloadStore, flaky: FlakyEngine, nbytes: int
) -> None:
    x = fill(nbytes)
    ticket = offload(last_store, x, "layer_3.mlp")
    last_store.release(ticket, block=True)
    wait_stored(ticket)
    flaky.read_failures = 2
    with pytest.raises(TransferError) as caught:
        fetch(last_store, ticket)
    message = str(caught.value)
    assert message.startswith("layer_3.mlp: ")
    assert f"{nbytes} bytes" in message
    assert "Input/output error" in message
    assert ticket.describe_place() in message
    assert isinstance(caught.value.__cause__, OSError)
    assert last_store.statistics().read_errors == 2
    assert torch.equal(fetch(last_store, ticket), x)
    last_store.free(ticket)


def test_wrong_questions_are_refused(store: OffloadStore) -> None:
    x = fill(100_000)
    with pytest.raises(StoreError, match="no tier 'host', only \\['nvme'\\]"):
        store.offload(x, "x", "host", True)
    with pytest.raises(StoreError, match="only those of cpu and cuda"):
        store.offload(x.to("meta"), "x", "nvme", True)
    with pytest.raises(StoreFull):
        store.reserve(2**62, "nvme")


def test_close(flaky: FlakyEngine, tmp_path: Path) -> None:
    store = OffloadStore({"nvme": flaky}, max_inflight_bytes=CAP)
    flaky.gate.clear()
    x = fill(100_000)
    ticket = offload(store, x)
    assert list(tmp_path.iterdir()) == []
    store.close()
    store.close()
    assert ticket.stored
    for call in (
        lambda: offload(store, x),
        lambda: store.release(ticket, block=True),
        lambda: store.prefetch(ticket),
        lambda: store.wait(ticket),
        lambda: store.reserve(1, "nvme"),
    ):
        with pytest.raises(StoreClosed, match="the store is closed"):
            call()
    store.free(ticket)
    check_empty(store)


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


def test_threads_at_once(store: OffloadStore) -> None:
    errors: list[str] = []

    def work(seed: int) -> None:
        for step in range(15):
            values = [fill(20_000 * (i + 1) + seed, 100 * seed + step) for i in range(5)]
            tickets = [offload(store, value) for value in values]
            for i, ticket in enumerate(tickets):
                store.release(ticket, block=i % 2 == 0)
            for value, ticket in zip(values, tickets, strict=True):
                if not torch.equal(fetch(store, ticket), value):
                    errors.append(f"thread {seed}, step {step}")
                store.free(ticket)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
