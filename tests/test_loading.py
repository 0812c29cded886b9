"""The way back of a value: from memory, lent or copied, and from its slot, twice if need be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from flaky_engine import FlakyEngine
from round_trips import CAP, check_empty, fetch, fill, offload, wait_stored

from fxoffload.errors import ModifiedError, StoreError, TransferError
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.torch_internals import make_version_counter


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


def test_what_is_kept_goes_to_one_backward_as_itself(last_store: OffloadStore) -> None:
    x = fill(100_000)
    ticket = last_store.keep(x, "x", "nvme", True)
    last_store.release(ticket, block=False)
    y = fetch(last_store, ticket)
    assert y.data_ptr() == x.data_ptr()
    assert ticket.kept is None, "its memory is the backward's"
    with pytest.raises(StoreError, match="was to be the last"):
        last_store.prefetch(ticket)
    last_store.free(ticket)
    assert last_store.statistics().kept_bytes == 100_000
    assert last_store.statistics().written_bytes == 0


def test_what_is_kept_for_another_backward_is_copied(store: OffloadStore) -> None:
    """But not what belongs to the caller, which no backward writes to."""
    x = fill(100_000)
    ours, callers = (store.keep(x, "x", "nvme", owned) for owned in (True, False))
    for _ in range(2):
        y = fetch(store, ours)
        assert y.data_ptr() != x.data_ptr()
        assert torch.equal(y, x)
        y.zero_()
        assert fetch(store, callers).data_ptr() == x.data_ptr()
    for ticket in (ours, callers):
        store.free(ticket)


def test_what_does_not_begin_its_storage_is_copied(last_store: OffloadStore) -> None:
    """The graph counts the offsets of views from the first byte of the value."""
    x = fill(100_000)[1000:]
    ticket = last_store.keep(x, "x", "nvme", False)
    y = fetch(last_store, ticket)
    assert y.storage_offset() == 0
    assert torch.equal(y, x)
    last_store.free(ticket)


@pytest.mark.parametrize("waits", [False, True], ids=["prefetch", "wait"])
def test_what_the_caller_changed_is_an_error(spoiled: OffloadStore, waits: bool) -> None:
    x = torch.zeros(1000)
    ticket = spoiled.keep(x, "x", "nvme", False)
    if waits:
        spoiled.prefetch(ticket)
    x.add_(1)
    with pytest.raises(ModifiedError, match="modified by an inplace operation"):
        (spoiled.wait if waits else spoiled.prefetch)(ticket)
    spoiled.free(ticket)


@pytest.fixture
def spoiled() -> Iterator[OffloadStore]:
    """A store that looks at the versions of what belongs to the caller."""
    store = OffloadStore(
        {"nvme": MemoryEngine(2**20)}, max_inflight_bytes=CAP, make_counter=make_version_counter
    )
    yield store
    check_empty(store)
    store.close()


def test_what_was_kept_moves_after_all(store: OffloadStore) -> None:
    x = fill(500_000)
    kept = store.keep(x, "x", "nvme", True)
    moved = store.move_kept(kept)
    assert moved is not None
    assert kept.kept is None
    assert moved.outgoing is None, "its memory is free when this returns"
    assert torch.equal(fetch(store, moved), x)
    assert store.move_kept(moved) is None
    for ticket in (kept, moved):
        store.free(ticket)
