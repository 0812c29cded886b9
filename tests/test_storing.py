"""The way out of a value: a slot in its tier, in the next one, or none."""

from __future__ import annotations

import warnings
from concurrent.futures import Future

import pytest
import torch
from flaky_engine import FlakyEngine
from round_trips import CAP, check_empty, fetch, fill, offload, wait_stored

from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.store.store import OffloadStore


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
