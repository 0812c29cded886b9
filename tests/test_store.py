"""The store: every value is restored correctly and in time, also after faults; nothing leaks."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
import torch
from flaky_engine import FlakyEngine
from round_trips import CAP, check_empty, fetch, fill, offload, round_trip
from torch.multiprocessing.reductions import StorageWeakRef

from fxoffload.errors import StoreClosed, StoreError, StoreFull
from fxoffload.runtime.devices.buffers import find_span
from fxoffload.runtime.engines.checksum import CheckedEngine
from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.posix import PosixEngine
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.torch_internals import make_version_counter

SIZES = (0, 1, 511, 512, 513, 4097, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 3_000_001)


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


def test_a_small_value_comes_back_whole_through_large_pages() -> None:
    """The read must be as long as the write: a digest is that of all that was written."""

    class LargePages(MemoryEngine):
        alignment = 64 * 2**10

    store = OffloadStore({"nvme": CheckedEngine(LargePages(2**24))}, max_inflight_bytes=CAP)
    x = fill(1000)
    assert torch.equal(round_trip(store, x), x)
    assert store.statistics().checksum_errors == 0
    store.close()


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
